"""One evaluation of a batch of runs, each at a row of its own plan: a function of tensors alone, so
that it is captured as it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastguide.engine.evaluate import EMPTY, Evaluate, Kept
from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.plan import At, Fact, Plan
from fastguide.engine.predict import Predict
from fastguide.engine.run import update
from fastguide.engine.stacked import FACTS, NAG, SLOTS, TIME, WEIGHTS, WIDTH, Kind
from fastguide.guidance.base import POSITIVE, Condition, Other
from fastguide.spacing import Levels

BAD = ("bad_gradient", POSITIVE, "")
NAMES = tuple(str(i) for i in range(SLOTS))


class Batch(NamedTuple):
    """What a batch has at its evaluation.

    Args:
        state: fp32 `[SLOTS, B, *shape]`, of which what the kind reads has values.
        numbers: fp32 `[B, WEIGHTS + 1 + K]` of `stacked.Stackable`.
        times: for each network of the passes what it has for a time, `[B, ...]`; absent: the time.
        seeds, number: int64 `[B]`: number `number` of the seed's noise.
        first_bad: int32 `[B]`.
        conditions: for each network, for each condition that the passes read; and the target.
        kept: what earlier evaluations left, batch first.
    """

    state: Tensor
    numbers: Tensor
    times: dict[Other | None, Tensor]
    seeds: Tensor
    number: Tensor
    first_bad: Tensor
    conditions: dict[Other | None, dict[Condition, Any]]
    target: Any
    kept: Kept


def tick(
    kind: Kind,
    passes: Passes | None,
    batch: Batch,
    levels: Levels,
    dtype: torch.dtype,
    outputs: int,
    drawn: Callable[[Any], Any],
) -> Kept:
    """Evaluate and update: writes `batch.state` and `batch.first_bad`, and returns what later
    evaluations need.

    Args:
        passes: of the kind's pattern; None where the row has no evaluation.
        drawn: the random condition beside the network's own.
    """
    state, numbers = batch.state, batch.numbers
    size, ones = state.shape[1], (1,) * (state.ndim - 2)

    def columns(first: int, last: int) -> Tensor:
        return numbers[:, first:last].T.reshape(last - first, size, *ones)

    plan = Plan(
        rows=(kind.row,),
        slots=NAMES,
        table=numbers[:, :WIDTH].contiguous(),
        weights=numbers[:, None, WEIGHTS:].clone(),  # projections write their own
        times=numbers[:, TIME].contiguous(),
        nag=numbers[:, NAG],
        facts=numbers[:, FACTS:TIME],
        index=torch.arange(size, device=numbers.device),
        batch=None,
        levels=levels,
        threshold=kind.threshold,
    )
    if plan.weights.shape[2] == 1:  # no evaluation: step wants a weight of x at least
        plan.weights.fill_(1.0)
    facts = columns(FACTS, TIME)
    at = At(
        row=kind.row,
        number=batch.number,
        index=plan.index,
        table=columns(0, WIDTH),
        weights=plan.weights[:, 0],
        time=plan.times,
        nag=plan.nag,
        facts=facts,
        ratio=plan.facts[:, Fact.TIME],
    )
    combined, kept = EMPTY, {BAD: batch.kept[BAD]}
    pattern = kind.row.pattern
    if pattern is not None:
        assert passes is not None
        fixed: Any = batch.conditions
        bound = Conditions(fixed, drawn(fixed[None].get("cond")), batch.target)
        times = {net: batch.times.get(net, plan.times) for net in fixed}
        predict = Predict(plan, {pattern: passes}, bound, batch.seeds, dtype, outputs, times)
        evaluate = Evaluate(predict, batch.kept)
        x = (facts[Fact.INPUT_SCALE] * state[0]).to(dtype)
        combined = evaluate(at, pattern, x, state[0])
        kept = {name: one for name, one in evaluate.kept.items() if name[0] != "weights"}
    seeds = batch.seeds
    update(plan, at, state, combined, batch.first_bad, seeds)
    return kept
