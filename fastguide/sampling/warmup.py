"""Warming up: how the rows of a batch are fastest, and captures before they are needed."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fastguide.common.log import log, logging_on
from fastguide.engine.measure import measure_rows
from fastguide.engine.passes import Conditions
from fastguide.engine.program import RowMode
from fastguide.engine.run import Inputs
from fastguide.sampling.planning import Planned
from fastguide.sampling.running import Runner


def warm_up(
    runner: Runner, planned: Planned, one: Conditions, batches: int | Iterable[int]
) -> dict[int, RowMode]:
    """Fills in `runner.measured` for each batch size and, where runs are captured, `runner.sizes`.

    Args:
        one: the conditions of one sample.

    Raises:
        ValueError: a batch size below 1.
    """
    for batch in [batches] if isinstance(batches, int) else list(batches):
        if batch < 1:
            raise ValueError(f"batches has {batch}, but it should be 1 or more")
        modes = [runner.rows] if runner.rows else list(planned.passes)
        conditions = one.repeated(batch)
        seeds = torch.zeros(batch, dtype=torch.int64, device=planned.setup.device)
        seconds = measure_rows(
            planned.plan,
            {mode: planned.passes[mode] for mode in modes},
            conditions,
            seeds,
            *planned.setup.settings,
        )
        runner.measured[batch] = mode = min(seconds, key=lambda mode: seconds[mode])
        if logging_on():
            milliseconds = {mode: 1e3 * each for mode, each in seconds.items()}
            log("warmup", batch=batch, mode=mode, milliseconds=milliseconds)
        if runner.graphs is not None:
            runner.sizes.add(batch)
            runner.run(planned, Inputs(conditions, seeds))
    return dict(runner.measured)
