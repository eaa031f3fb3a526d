"""What is found out on a plan's largest evaluation: how its rows are fastest, and how many kernels
it launches, so how large a captured run would be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastguide.engine.evaluate import Evaluate
from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import At, Plan
from fastguide.engine.predict import Predict
from fastguide.engine.program import RowMode
from fastguide.staging.contract import uncompiled

ROUNDS = 3
# A graph's node takes some kilobytes on the device and microseconds to set up, so that this many
# are some tens of megabytes and a fraction of a second: an estimate, not measured.
WHOLE_NODES = 20_000


def measure_rows(
    plan: Plan,
    choices: Mapping[RowMode, Mapping[Pattern, Passes]],
    conditions: Conditions,
    seeds: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    outputs: int,
) -> dict[RowMode, float]:
    """Seconds of the plan's largest evaluation in each mode: the median of some, taken in turns
    after a first that is not counted.
    """
    calls: dict[RowMode, Callable[[], object]] = {}
    for mode, passes in choices.items():
        evaluate = Evaluate(Predict(plan, passes, conditions, seeds, dtype, outputs))
        calls[mode] = partial(evaluate, *_largest(plan, passes, len(seeds), shape, dtype))
    times: dict[RowMode, list[float]] = {mode: [] for mode in calls}
    for _ in range(1 + ROUNDS):
        for mode, call in calls.items():
            times[mode].append(_seconds(call, seeds.device))
    return {mode: statistics.median(values[1:]) for mode, values in times.items()}


def count_nodes(
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    conditions: Conditions,
    seeds: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    outputs: int,
) -> int:
    """About how many nodes the graph of a whole run has: evaluations times the kernels of the
    largest, which is run once, uncompiled.
    """
    given = _largest(plan, passes, len(seeds), shape, dtype)
    with uncompiled(), Launches() as launches:
        Evaluate(Predict(plan, passes, conditions, seeds, dtype, outputs))(*given)
    return plan.evaluations * launches.count


class Launches(TorchDispatchMode):
    """Counts the ops that are no views, each about one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _largest(
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    batch: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> tuple[At, Pattern, Tensor, Tensor]:
    """What `Evaluate` is given at the evaluation of most rows, for noughts."""
    at = plan.at(plan.largest)
    pattern = at.row.pattern
    assert pattern is not None
    device = plan.index.device
    x = torch.zeros((passes[pattern].inputs * batch, *shape), device=device, dtype=dtype)
    return at, pattern, x, torch.zeros((batch, *shape), device=device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
