"""The evaluations of a run whose conditions may change between steps, compiled where asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.predict import Predict, Times
from fastguide.engine.program import Program
from fastguide.engine.rows import Context, bind, run_program
from fastguide.guidance.base import Branch
from fastguide.staging.contract import Normalized


class Compiled:
    """One graph for each program: `torch.compile(fullgraph=True)` with further options."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {"fullgraph": True, "dynamic": False, **options}
        self._functions: dict[int, tuple[Program, Callable[..., Any]]] = {}

    def run(
        self,
        program: Program,
        x: Tensor,
        t: Tensor,
        conds: list[dict[int, Any]],
        batch: int,
        shape: tuple[int, ...],
        context: Context,
    ) -> dict[Branch, Tensor]:
        """As `fastguide.engine.rows.run_program`."""
        key = id(program)
        if key not in self._functions:
            self._functions[key] = (program, torch.compile(_graph(program), **self.options))
        scale = None if context.nag is None else context.nag.scale
        nag = context.nag
        tau = None if nag is None else (nag.tau, nag.alpha, nag.shared, nag.alone)
        outputs, observed = self._functions[key][1](
            x, t, conds, batch, shape, context.seeds, context.time, scale, tau
        )
        context.observed.update(observed)
        rows = [row for one in program.batches for row in one.rows]
        return dict(zip(rows, outputs, strict=True))


def _graph(program: Program) -> Callable[..., Any]:
    rows = [row for one in program.batches for row in one.rows]

    def graph(
        x: Tensor,
        t: Tensor,
        conds: list[dict[int, Any]],
        batch: int,
        shape: tuple[int, ...],
        seeds: Tensor | None,
        time: Tensor | None,
        scale: Tensor | None,
        tau: tuple[float, float, bool, bool] | None,
    ) -> tuple[list[Tensor], dict[Any, Any]]:
        nag = None if scale is None or tau is None else Normalized(scale, *tau)
        context = Context(seeds, time, nag)
        found = run_program(program, x, t, conds, batch, shape, context)
        return [found[row] for row in rows], context.observed

    # torch.compile counts recompilations by code object: each program has its own
    code = graph.__code__.replace(co_name=f"graph_{next(_numbers)}")
    return FunctionType(code, graph.__globals__, code.co_name, None, graph.__closure__)


_numbers = count()


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
        if program.graph or context.move is not None:
            raise ValueError(
                "compile is on, but the guidance differentiates the network, which runs uncompiled"
            )
        if any(step.stage.enters for one in program.batches for step in one.steps):
            raise ValueError(
                "compile is on, but the guidance reaches into a network that is staged by its "
                "modules, which runs uncompiled: compile its blocks instead "
                "(net.compile_repeated_blocks())"
            )
        return self.compiled.run(program, x, t, conds, batch, shape, context)
