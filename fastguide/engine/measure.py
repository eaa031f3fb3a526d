"""Whether the rows of an evaluation are faster as one batch or one after the other: measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from fastguide.engine.evaluate import Evaluate
from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.predict import Predict
from fastguide.engine.program import RowMode

ROUNDS = 3


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
    at = plan.at(plan.largest)
    pattern = at.row.pattern
    assert pattern is not None
    batch = seeds.shape[0]
    state = torch.zeros((batch, *shape), device=seeds.device, dtype=torch.float32)
    calls: dict[RowMode, Callable[[], object]] = {}
    for mode, passes in choices.items():
        evaluate = Evaluate(Predict(plan, passes, conditions, seeds, dtype, outputs))
        x = torch.zeros((passes[pattern].inputs * batch, *shape), device=seeds.device, dtype=dtype)

        calls[mode] = partial(evaluate, at, pattern, x, state)
    times: dict[RowMode, list[float]] = {mode: [] for mode in calls}
    for _ in range(1 + ROUNDS):
        for mode, call in calls.items():
            times[mode].append(_seconds(call, seeds.device))
    return {mode: statistics.median(values[1:]) for mode, values in times.items()}


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
