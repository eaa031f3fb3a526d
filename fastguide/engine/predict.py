"""What the networks predict at one evaluation, pass by pass; REG's factor comes on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastguide import ops
from fastguide.engine.degrade import degraded_offset
from fastguide.engine.gradient import Graph, difference_factor, reg_factor
from fastguide.engine.passes import Conditions, Pass, Passes
from fastguide.engine.pattern import MOVED, Pattern
from fastguide.engine.plan import At, Fact, Plan
from fastguide.engine.rows import Context, bind, run_program
from fastguide.guidance.base import POSITIVE, Branch, Other
from fastguide.staging.contract import Normalized

STEP, STEP_16_BIT = 0.003, 0.1  # of REG's mode "difference", in units of sigma
Times = dict[Other | None, Tensor]


class Predict:
    """The passes of one run: `predict(at, pattern, x, state, graph)`.

    `factor` is REG's, of the last evaluation that refreshed it.

    Args:
        outputs: parts of the network's output along its channels.
        times: of `time_tables`, where they are there already.
    """

    def __init__(
        self,
        plan: Plan,
        passes: Mapping[Pattern, Passes],
        conditions: Conditions,
        seeds: Tensor,
        dtype: torch.dtype,
        outputs: int,
        times: Times | None = None,
    ) -> None:
        self.plan, self.passes, self.conditions = plan, passes, conditions
        self.seeds, self.dtype, self.outputs = seeds, dtype, outputs
        self.factor: Tensor | None = None
        self.bound = {
            one: bind(one.program, conditions.fixed[one.rows[0].net])
            for of_pattern in passes.values()
            for one in of_pattern.all
            if not one.draws_condition
        }
        self.tables = time_tables(plan, passes) if times is None else times
        self.times = {net: table.split(1) for net, table in self.tables.items()}
        self.side: torch.cuda.Stream | None = None
        if any(one.beside for one in passes.values()):
            self.side = torch.cuda.Stream(seeds.device)

    def __call__(
        self, at: At, pattern: Pattern, x: Tensor, state: Tensor, graph: Graph | None
    ) -> dict[Branch, Tensor]:
        """The prediction of every row, the parts of an output as heads.

        Args:
            at: the plan's row.
            x: the network's input, `[inputs B, *shape]`.
            state: x in fp32 and unscaled, `[B, *shape]`.
            graph: is given that of the positive rows, where they are differentiated.
        """
        passes, how = self.passes[pattern], pattern.rectified
        context, h = self._context(at, pattern, passes)

        def differentiate(leaf: Tensor, output: Tensor) -> None:
            assert graph is not None
            only_factor = not any(branch.derived for branch in pattern.branches)
            graph.take(leaf, output)
            if pattern.refreshed and how is not None and how.mode == "vjp":
                product = graph.product(None, keep=not only_factor)
                self.factor = reg_factor(at.facts, product)
            if only_factor:
                graph.release()

        parts = self._other_networks(at, passes, x, context, state.shape[1])
        first = self._run(at, passes.first, x, context, differentiate)
        if self.outputs == 1:
            parts |= first
        for rows, output in first.items() if self.outputs > 1 else ():
            for head, part in enumerate(output.chunk(self.outputs, 1)):
                parts[rows.with_head(head)] = part
        if self.side is not None and passes.beside:
            torch.cuda.current_stream().wait_stream(self.side)
        if h is not None:
            self.factor = difference_factor(at.facts, at.table, parts[MOVED], parts[POSITIVE], h)
        for one in passes.others:
            branch = one.rows[0]
            if branch.degraded is not None:
                parts[branch] = self._degraded(at, one, parts[branch.source], state, context)
        return parts

    def _context(self, at: At, pattern: Pattern, passes: Passes) -> tuple[Context, Tensor | None]:
        """What layers may need, and how far a moved row is from x, where there is one."""
        facts, nag, h = at.facts, None, None
        if pattern.nag is not None:
            alone = all(branch.cond != "negative" for branch in pattern.computed)
            told = (pattern.nag.tau, pattern.nag.alpha, pattern.nag.shared, alone)
            nag = Normalized(at.nag, *told)
        seeds = ops.derive_seeds(self.seeds, at.number) if passes.draws else None
        how = pattern.rectified
        if pattern.refreshed and how is not None and how.mode == "difference":
            usual = STEP if self.dtype == torch.float32 else STEP_16_BIT
            h = (how.step or usual) * facts[Fact.SIGMA]
        move = None if h is None else facts[Fact.INPUT_SCALE] * h
        return Context(seeds, at.ratio, nag, move), h

    def _other_networks(
        self, at: At, passes: Passes, x: Tensor, context: Context, channels: int
    ) -> dict[Branch, Tensor]:
        """The predictions of other networks, perhaps on the side stream."""
        parts: dict[Branch, Tensor] = {}
        if self.side is not None and passes.beside:
            self.side.wait_stream(torch.cuda.current_stream())
        for one in passes.others:
            branch = one.rows[0]
            if branch.net is None:
                continue
            if self.side is None or not passes.beside:
                parts[branch] = self._run(at, one, x, context)[branch][:, :channels]
                continue
            with torch.cuda.stream(self.side):
                parts[branch] = self._run(at, one, x, context)[branch][:, :channels]
            parts[branch].record_stream(torch.cuda.current_stream())
        return parts

    def _run(
        self,
        at: At,
        one: Pass,
        x: Tensor,
        context: Context,
        differentiate: Callable[[Tensor, Tensor], None] | None = None,
    ) -> dict[Branch, Tensor]:
        """One pass, x `[B, *shape]` or the copies that the program takes."""
        batch, net = self.seeds.shape[0], one.rows[0].net
        if x.shape[0] != one.program.inputs * batch:
            copies, x = one.program.inputs, x[:batch]
            x = x if copies == 1 else x.repeat(copies, *[1] * (x.ndim - 1))
        outputs = self.outputs if net is None else net.model.outputs
        shape = (outputs * x.shape[1], *x.shape[2:])
        bound, t = self._bound(one, context), self._time(at, net)
        if one.compiled is not None:
            return one.compiled.run(one.program, x, t, bound, batch, shape, context)
        return self._execute(one.program, x, t, bound, batch, shape, context, differentiate)

    def _time(self, at: At, net: Other | None) -> Tensor:
        """What the network's rows have for a time, `[1, ...]`, or `[B, ...]` for each sample."""
        if at.each:
            return self.tables[net]
        if isinstance(at.number, int):
            return self.times[net][at.number]
        return self.tables[net].index_select(0, at.number)

    def _bound(self, one: Pass, context: Context) -> list[dict[int, Any]]:
        """The conditions of a pass, as `run_program` takes them."""
        if not one.draws_condition:
            return self.bound[one]
        assert self.conditions.drawn is not None
        assert context.seeds is not None
        drawn = self.conditions.drawn(context.seeds)
        return bind(one.program, {**self.conditions.fixed[None], "random": drawn})

    # what runs a program: a subclass may have it compiled
    _execute = staticmethod(run_program)

    def _degraded(
        self, at: At, one: Pass, source: Tensor, state: Tensor, context: Context
    ) -> Tensor:
        """The prediction for the degraded input, moved to where it has the same eps at x; `source`
        is that for x itself.
        """
        facts, branch = at.facts, one.rows[0]
        settings = branch.degraded
        assert settings is not None
        observed = context.observed.get((*settings.layers, branch.source))
        offset = degraded_offset(
            settings, state, source, at.table, facts[Fact.ALPHA], observed, context.seeds
        )
        x = ((state + offset) * facts[Fact.INPUT_SCALE]).to(self.dtype)
        prediction = self._run(at, one, x, context)[branch][:, : state.shape[1]]
        return prediction.float() + facts[Fact.MOVE] * offset


def time_tables(plan: Plan, passes: Mapping[Pattern, Passes]) -> Times:
    """For each network what its rows have for a time at each evaluation, `[E, ...]`."""
    found: Times = {}
    for one in (one for of_pattern in passes.values() for one in of_pattern.all):
        net = one.rows[0].net
        if net not in found:
            found[net] = plan.times if one.embed_times is None else one.embed_times(plan.times)
    return found
