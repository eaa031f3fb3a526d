"""Programs as one compiled graph each: `torch.compile` of all stages and rows of a pass, with our
ops inside as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import count
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from fastguide.common.locks import ProcessLock
from fastguide.engine.program import Program
from fastguide.engine.rows import Context, run_program
from fastguide.guidance.base import Branch
from fastguide.staging.contract import Normalized


class Compiled:
    """One graph for each program and shape: `torch.compile(fullgraph=True)` with further options.

    Raises:
        ValueError: of `program`, one that cannot be compiled.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        # heavy, and to be there before anything runs on tensors without data

        self.given = dict(options)
        self.options = {"fullgraph": True, "dynamic": False, **options}
        self._programs: dict[Hashable, Program] = {}
        self._functions: dict[Hashable, tuple[Program, Callable[..., Any]]] = {}
        self._lock = ProcessLock()

    def program(self, key: Hashable, make: Callable[[], Program]) -> Program:
        """The program of an equal key that there was before, so that its graphs are used again."""
        with self._lock:
            found = self._programs.get(key)
            if found is None:
                found = self._programs[key] = make()
        check_compilable(found)
        return found

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
        key = (id(program), x.shape)
        with self._lock:
            if key not in self._functions:
                self._functions[key] = program, torch.compile(_graph(program), **self.options)
            function = self._functions[key][1]
        scale = None if context.nag is None else context.nag.scale
        nag = context.nag
        tau = None if nag is None else (nag.tau, nag.alpha, nag.shared, nag.alone)
        outputs, observed = function(
            x, t, conds, batch, shape, context.seeds, context.time, scale, tau
        )
        context.observed.update(observed)
        rows = [row for one in program.batches for row in one.rows]
        return dict(zip(rows, outputs, strict=True))


def check_compilable(program: Program) -> None:
    """Raise ValueError for a program that runs uncompiled alone."""
    moved = any(row.moved for one in program.batches for row in one.rows)
    if program.graph or moved:
        raise ValueError(
            "compile is on, but the guidance differentiates the network, which runs uncompiled"
        )
    if any(step.stage.enters for one in program.batches for step in one.steps):
        raise ValueError(
            "compile is on, but the guidance reaches into a network that is staged by its "
            "modules, which runs uncompiled: compile its blocks instead "
            "(net.compile_repeated_blocks())"
        )


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
