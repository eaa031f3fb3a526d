"""How far a training run is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def training(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A bar with the smoothed loss and the speed; yields `report(step, loss)`."""
    from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("loss {task.fields[loss]:.4f}, {task.fields[speed]:.2f} steps/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*Progress.get_default_columns()[:3], *columns) as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"), speed=0.0)
        smooth = [0.0]
        marks: deque[float] = deque(maxlen=50)  # when the last steps were done

        def report(step: int, loss: float) -> None:
            smooth[0] = loss if step == 1 or not smooth[0] else 0.98 * smooth[0] + 0.02 * loss
            marks.append(time.perf_counter())
            speed = (len(marks) - 1) / max(marks[-1] - marks[0], 1e-9)
            progress.update(task, completed=step, loss=smooth[0], speed=speed)

        yield report
