"""One evaluation: all passes of its pattern, and the prediction of each branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastguide import ops
from fastguide.engine.degrade import degraded_offset
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.program import Program, RowMode, make_program
from fastguide.engine.rows import Context, bind, run_program
from fastguide.guidance.base import Branch, Condition
from fastguide.staged import Normalized

VARIANCE = Branch("cond", head=1)  # the second part of the output, whatever it means


@dataclass(frozen=True)
class Passes:
    """The programs of one pattern: the first pass, and one for each degraded input."""

    first: Program
    others: tuple[tuple[Branch, Program], ...] = ()

    @property
    def inputs(self) -> int:
        """How many copies of x the first pass is given."""
        return self.first.inputs

    @property
    def draws(self) -> bool:
        """Whether anything is drawn beside the update's noise."""
        programs = (self.first, *(program for _, program in self.others))
        masks = (branch.degraded.mask for branch, _ in self.others if branch.degraded)
        return "random" in masks or any(program.draws for program in programs)


def make_passes(pattern: Pattern, net: Any, mode: RowMode = "batched") -> Passes:
    """The programs of `pattern` for `net`."""
    first, *others = pattern.passes
    observe = [
        (str(layer), rows[0].source)
        for rows in others
        if rows[0].degraded is not None
        for layer in rows[0].degraded.layers
    ]
    return Passes(
        make_program(first, net, pattern.nag, observe, mode),
        tuple((rows[0], make_program(rows, net, pattern.nag, (), mode)) for rows in others),
    )


class Evaluate:
    """The evaluations of one run: `evaluate(e, pattern, x, state, outputs)`."""

    def __init__(
        self,
        plan: Plan,
        passes: Mapping[Pattern, Passes],
        conditions: Mapping[Condition, Any],
        seeds: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.plan, self.passes, self.seeds, self.dtype = plan, passes, seeds, dtype
        self.conds = {
            pattern: [bind(program, conditions) for program in _programs(one)]
            for pattern, one in passes.items()
        }

    def __call__(
        self, e: int, pattern: Pattern, x: Tensor, state: Tensor, outputs: int
    ) -> dict[Branch, Tensor]:
        """The prediction of each branch, and VARIANCE where there are two parts.

        Args:
            e: the plan's row.
            x: the network's input, `[inputs B, *shape]`.
            state: x in fp32 and unscaled, `[B, *shape]`.
            outputs: parts of the network's output along its channels.
        """
        plan, passes, conds = self.plan, self.passes[pattern], self.conds[pattern]
        seeds = ops.derive_seeds(self.seeds, e) if passes.draws else None
        nag = None
        if pattern.nag is not None:
            nag = Normalized(plan.nag[e], pattern.nag.tau, pattern.nag.alpha)
        context, t = Context(seeds, nag), plan.times[e]
        batch, shape = state.shape[0], (outputs * state.shape[1], *state.shape[2:])
        found = run_program(passes.first, x, t, conds[0], batch, shape, context)
        parts = {}
        for rows, output in found.items():
            for head, part in enumerate(output.chunk(outputs, 1)):
                parts[Branch(rows.cond, head, rows.how, rows.layers)] = part
        for (branch, program), bound in zip(passes.others, conds[1:], strict=True):
            settings = branch.degraded
            assert settings is not None
            observed = context.observed.get((*settings.layers, branch.source))
            offset = degraded_offset(
                settings,
                state,
                parts[branch.source],
                plan.table[e],
                plan.degrade[e],
                observed,
                seeds,
            )
            given = ((state + offset) * plan.degrade[e, 2]).to(self.dtype)
            given = given.repeat(program.inputs, *[1] * (given.ndim - 1))
            again = Context(seeds, nag)
            output = run_program(program, given, t, bound, batch, shape, again)[branch]
            prediction = output[:, : state.shape[1]]
            moved = prediction.float() + plan.degrade[e, 1] * offset
            parts[branch] = moved.to(prediction.dtype)
        return parts


def _programs(passes: Passes) -> list[Program]:
    return [passes.first, *(program for _, program in passes.others)]
