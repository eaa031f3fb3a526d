"""One evaluation: all passes of its pattern, and the prediction of each branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastguide import ops
from fastguide.engine.degrade import degraded_offset
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Fact, Plan
from fastguide.engine.program import Program, RowMode, make_program
from fastguide.engine.rows import Context, bind, run_program
from fastguide.guidance.base import POSITIVE, Branch, Condition, Other
from fastguide.staged import Normalized

VARIANCE = Branch("cond", head=1)  # the second part of the output, whatever it means
Nets = Mapping[Other | None, Any]  # None is the network that is sampled


@dataclass(frozen=True)
class Conditions:
    """What the networks take as `cond`.

    Args:
        fixed: for each network, for each condition that is the same all along.
        drawn: the random condition, from seeds int64 `[B]`; None where the guidance has none.
    """

    fixed: Mapping[Other | None, Mapping[Condition, Any]]
    drawn: Callable[[Tensor], Any] | None = None

    def repeated(self, batch: int) -> Conditions:
        """Those of one sample, for a batch of them, to measure time with: nothing is drawn."""
        fixed = {
            net: {name: _repeated(value, batch) for name, value in one.items()}
            for net, one in self.fixed.items()
        }
        drawn = None if self.drawn is None else lambda _: fixed[None]["cond"]
        return Conditions(fixed, drawn)


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass: its rows, the first of which says what is special about it, and their program."""

    rows: tuple[Branch, ...]
    program: Program

    @property
    def draws_condition(self) -> bool:
        """Whether a row has a random condition."""
        return any(row.cond == "random" for row in self.rows)


@dataclass(frozen=True)
class Passes:
    """The first pass of a pattern, and those after it: degraded inputs, other networks."""

    first: Pass
    others: tuple[Pass, ...] = ()

    @property
    def all(self) -> tuple[Pass, ...]:
        """All of them."""
        return (self.first, *self.others)

    @property
    def inputs(self) -> int:
        """How many copies of x the first pass is given."""
        return self.first.program.inputs

    @property
    def draws(self) -> bool:
        """Whether anything is drawn beside the update's noise."""
        masks = [row.degraded.mask for one in self.others for row in one.rows if row.degraded]
        drawn = (one.program.draws or one.draws_condition for one in self.all)
        return "random" in masks or any(drawn)


def make_passes(pattern: Pattern, nets: Nets, mode: RowMode = "batched") -> Passes:
    """The programs of `pattern` for `nets`."""
    first, *others = pattern.passes
    observe = [
        (str(layer), rows[0].source)
        for rows in others
        if rows[0].degraded is not None
        for layer in rows[0].degraded.layers
    ]
    after = []
    for rows in others:
        nag = pattern.nag if rows[0].net is None else None
        after.append(Pass(rows, make_program(rows, nets[rows[0].net], nag, (), mode)))
    return Passes(
        Pass(first, make_program(first, nets[None], pattern.nag, observe, mode)), tuple(after)
    )


class Evaluate:
    """The evaluations of one run, in order: `evaluate(e, pattern, x, state)`.

    Args:
        outputs: parts of the network's output along its channels.
    """

    def __init__(
        self,
        plan: Plan,
        passes: Mapping[Pattern, Passes],
        conditions: Conditions,
        seeds: Tensor,
        dtype: torch.dtype,
        outputs: int,
    ) -> None:
        self.plan, self.passes, self.conditions = plan, passes, conditions
        self.seeds, self.dtype, self.outputs = seeds, dtype, outputs
        self.deltas: dict[Branch, Tensor] = {}  # what is held
        self.bound = {
            one: bind(one.program, conditions.fixed[one.rows[0].net])
            for of_pattern in passes.values()
            for one in of_pattern.all
            if not one.draws_condition
        }

    def __call__(self, e: int, pattern: Pattern, x: Tensor, state: Tensor) -> dict[Branch, Tensor]:
        """The prediction of each branch, and VARIANCE where there are two parts.

        Args:
            e: the plan's row.
            x: the network's input, `[inputs B, *shape]`.
            state: x in fp32 and unscaled, `[B, *shape]`.
        """
        plan, passes, nag = self.plan, self.passes[pattern], None
        if pattern.nag is not None:
            nag = Normalized(plan.nag[e], pattern.nag.tau, pattern.nag.alpha)
        seeds = ops.derive_seeds(self.seeds, e) if passes.draws else None
        context = Context(seeds, plan.facts[e, Fact.TIME], nag)
        parts = {
            rows.with_head(head): part
            for rows, output in self._run(e, passes.first, x, context).items()
            for head, part in enumerate(output.chunk(self.outputs, 1))
        }
        positive = parts[POSITIVE]
        for one in passes.others:
            branch = one.rows[0]
            if branch.net is not None:
                found = self._run(e, one, x, context)[branch][:, : state.shape[1]]
            else:
                found = self._degraded(e, one, parts[branch.source], state, context)
            parts[branch] = found.to(positive.dtype)
        for branch in pattern.branches:
            if branch in pattern.held:
                parts[branch] = positive - self.deltas[branch]
            elif branch.every > 1:
                parts[branch] = parts[branch.at_once]
                self.deltas[branch] = positive - parts[branch]
        return parts

    def _run(self, e: int, one: Pass, x: Tensor, context: Context) -> dict[Branch, Tensor]:
        """One pass, x `[B, *shape]` or the copies that the program takes."""
        batch, net = self.seeds.shape[0], one.rows[0].net
        if one.draws_condition:
            assert self.conditions.drawn is not None
            assert context.seeds is not None
            drawn = self.conditions.drawn(context.seeds)
            bound = bind(one.program, {**self.conditions.fixed[None], "random": drawn})
        else:
            bound = self.bound[one]
        if x.shape[0] != one.program.inputs * batch:
            x = x[:batch].repeat(one.program.inputs, *[1] * (x.ndim - 1))
        outputs = self.outputs if net is None else net.model.outputs
        shape = (outputs * x.shape[1], *x.shape[2:])
        return run_program(one.program, x, self.plan.times[e], bound, batch, shape, context)

    def _degraded(
        self, e: int, one: Pass, source: Tensor, state: Tensor, context: Context
    ) -> Tensor:
        """The prediction for the degraded input, moved to where it has the same eps at x; `source`
        is that for x itself.
        """
        facts, branch = self.plan.facts[e], one.rows[0]
        settings = branch.degraded
        assert settings is not None
        observed = context.observed.get((*settings.layers, branch.source))
        offset = degraded_offset(
            settings, state, source, self.plan.table[e], facts[Fact.ALPHA], observed, context.seeds
        )
        x = ((state + offset) * facts[Fact.INPUT_SCALE]).to(self.dtype)
        prediction = self._run(e, one, x, context)[branch][:, : state.shape[1]]
        return prediction.float() + facts[Fact.MOVE] * offset


def _repeated(cond: Any, batch: int) -> Any:
    def repeat(leaf: Any) -> Any:
        return leaf.repeat(batch, *[1] * (leaf.ndim - 1)) if isinstance(leaf, Tensor) else leaf

    return tree_map(repeat, cond)
