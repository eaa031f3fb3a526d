"""The evaluations of a run whose conditions may change between steps, compiled where asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastguide.engine.compiled import Compiled, check_compilable
from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.predict import Predict, Times
from fastguide.engine.program import Program
from fastguide.engine.rows import Context, bind, run_program
from fastguide.guidance.base import Branch


class Stepwise(Predict):
    """`Predict` with conditions that may change, and programs that may be compiled."""

    def __init__(
        self,
        plan: Plan,
        passes: Mapping[Pattern, Passes],
        conditions: Conditions,
        seeds: Tensor,
        dtype: torch.dtype,
        outputs: int,
        compiled: Compiled | None,
        times: Times | None = None,
    ) -> None:
        super().__init__(plan, passes, conditions, seeds, dtype, outputs, times)
        self.compiled = compiled
        self.given: Mapping[Branch, Tensor] | None = None  # predictions that are there already
        self.check: Callable[[], None] | None = None  # before the network runs for others

    def rebind(self, conditions: Conditions) -> None:
        """Go on with other conditions."""
        self.conditions = conditions
        for one in self.bound:
            self.bound[one] = bind(one.program, conditions.fixed[one.rows[0].net])

    def _execute(
        self,
        program: Program,
        x: Tensor,
        t: Tensor,
        conds: list[dict[int, Any]],
        batch: int,
        shape: tuple[int, ...],
        context: Context,
        differentiate: Callable[[Tensor, Tensor], None] | None = None,
    ) -> dict[Branch, Tensor]:
        """`run_program`, compiled where asked; what is given already does not run."""
        if self.given is not None:
            rows = [row for one in program.batches for row in one.rows]
            plain = not program.graph and context.move is None and context.nag is None
            plain = plain and not any(step.observe for one in program.batches for step in one.steps)
            if plain and all(row in self.given for row in rows):
                return {row: self.given[row] for row in rows}
        if self.check is not None and program.batches[0].rows[0].net is None:
            self.check()
        if self.compiled is None:
            return run_program(program, x, t, conds, batch, shape, context, differentiate)
        check_compilable(program)
        return self.compiled.run(program, x, t, conds, batch, shape, context)
