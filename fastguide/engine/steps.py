"""A run in parts that are captured one by one: an evaluation and its update, at a row of the plan
that a counter on the device tells. Rows that differ in their numbers alone are one part.

What evaluations leave to later ones lies in fixed buffers, which the parts share. A part also lays
out the conditions for its rows, a copy of them per evaluation; whole runs do that once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastguide.engine.evaluate import EMPTY, Evaluate, Kept
from fastguide.engine.latch import Latches, ending
from fastguide.engine.passes import Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import PREVIEW, At, Fact, Plan, Row
from fastguide.engine.predict import Predict, time_tables
from fastguide.engine.run import Inputs, aliases, buffers, renew, update
from fastguide.engine.watch import Watch
from fastguide.guidance.base import POSITIVE, Branch


class Kind(NamedTuple):
    """What tells one part from another.

    Args:
        row: of the plan, less its level.
        pattern: what runs of the row's own.
        aliased: whether the network reads x itself.
        copies: how many copies of the next input the update writes.
        first: whether it is the start of the run.
    """

    row: Row
    pattern: Pattern | None
    aliased: bool
    copies: int
    first: bool


class Steps:
    """The parts of one run, on fixed buffers; `drive` plays them in order.

    Args:
        plan, inputs: of tensors at fixed addresses, which change between runs.
    """

    def __init__(
        self,
        plan: Plan,
        passes: Mapping[Pattern, Passes],
        inputs: Inputs,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        outputs: int,
    ) -> None:
        self.plan, self.passes, self.inputs = plan, passes, inputs
        self.dtype, self.outputs = dtype, outputs
        self.state, self.buffer, self.first_bad = buffers(plan, passes, inputs.seeds, shape, dtype)
        self.counter = torch.zeros_like(plan.index[:1])
        self.noise = torch.empty_like(self.state[0]) if inputs.step_noise is not None else None
        self.numbers = self._numbers()
        self.times = {net: table.clone() for net, table in time_tables(plan, passes).items()}
        self.kept: Kept = {("bad_gradient", POSITIVE, ""): torch.zeros_like(inputs.seeds)}
        if plan.rewrites:
            self.kept["weights", POSITIVE, ""] = torch.zeros_like(plan.weights)
        kinds: dict[Kind, int] = {}
        self.examples: list[int] = []  # for each part a row that it fits
        self.names: dict[tuple[int, bool, bool], int] = {}
        for e, ends, next_ends in self._occasions():
            kind = self._kind(e, ends, next_ends)
            if kind not in kinds:
                kinds[kind] = len(kinds)
                self.examples.append(e)
            self.names[e, ends, next_ends] = kinds[kind]
        self.kinds = tuple(kinds)

    @property
    def parts(self) -> dict[int, Callable[[], None]]:
        """What is captured, by the numbers that `drive` plays."""
        return {number: partial(self._part, kind) for number, kind in enumerate(self.kinds)}

    def ready(self, number: int) -> None:
        """Count as if the part came next."""
        self.counter.fill_(self.examples[number])

    def drive(
        self, play: Callable[[int], Any], watch: Watch | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Play a run; what `fastguide.engine.run.run` returns. That a branch has ended is taken
        into account an evaluation later than there, as an update writes the next input.
        """
        latches, given, ends = Latches(), iter(self.inputs.step_noise or ()), False
        rows = self.plan.rows
        for e, row in enumerate(rows):
            next_ends = e + 1 < len(rows) and latches.ended(rows[e + 1])
            if self.noise is not None and row.draws and e > 0:
                self.noise.copy_(next(given))
            play(self.names[e, ends, next_ends])
            for branch, off in self.offs:
                latches.show(branch, off)
            if watch is not None:
                if watch(e, self.state):
                    x = self.state[self.plan.slots.index(PREVIEW)]
                    return x, self.first_bad, self.kept["bad_gradient", POSITIVE, ""]
                copies = self.kinds[self.names[e, ends, next_ends]].copies
                if copies:
                    net_input = self.buffer[: copies * self.state.shape[1]]
                    renew(self.plan.at(e), self.state[0], net_input)
            ends = next_ends
        return self.state[0], self.first_bad, self.kept["bad_gradient", POSITIVE, ""]

    @property
    def offs(self) -> list[tuple[Branch, Tensor]]:
        """For which samples each branch has ended."""
        return [(branch, kept) for (_, branch, name), kept in self.kept.items() if name == "off"]

    def _occasions(self) -> Iterator[tuple[int, bool, bool]]:
        """Each row; where adaptive guidance may have ended a branch of its pattern, or of the
        next row's, also that.
        """
        can_end = [ending(row) for row in (*self.plan.rows, self.plan.rows[0])]
        for e, (now, following) in enumerate(pairwise(can_end)):
            yield e, False, False
            if following:
                yield e, False, True
            if now and following:
                yield e, True, True
            if now and not (following and following <= now):
                yield e, True, False

    def _kind(self, e: int, ends: bool, next_ends: bool) -> Kind:
        rows, copies, aliased = self.plan.rows, 0, False
        pattern = _pattern(rows[e], ends)
        if pattern is not None:
            aliased = aliases(rows[e - 1], self.passes[pattern], self.dtype)
        following = _pattern(rows[e + 1], next_ends) if e + 1 < len(rows) else None
        if following is not None and not aliases(rows[e], self.passes[following], self.dtype):
            copies = self.passes[following].inputs
        return Kind(replace(rows[e], at=None, input_scale=1.0), pattern, aliased, copies, e == 0)

    def _part(self, kind: Kind) -> None:
        """One evaluation and its update; what is captured."""
        batch, row, pattern = self.state.shape[1], kind.row, kind.pattern
        if kind.first:
            self._reset()
        at, combined = self._at(row), EMPTY
        if pattern is not None:
            evaluate = self._evaluate(pattern)
            count = self.passes[pattern].inputs * batch
            x = self.state[0] if kind.aliased else self.buffer[:count]
            combined = evaluate(at, pattern, x, self.state[0])
        noise = None
        if row.draws:
            noise = self.inputs.noise if kind.first else self.noise
        net_input = self.buffer[: kind.copies * batch] if kind.copies else None
        known = (self.first_bad, self.inputs.seeds, noise, net_input)
        update(self.plan, at, self.state, combined, *known)
        if pattern is not None:
            self._keep(evaluate.kept)
        self.counter.add_(1)

    def _evaluate(self, pattern: Pattern) -> Evaluate:
        known = (self.inputs.conditions, self.inputs.seeds, self.dtype, self.outputs, self.times)
        return Evaluate(Predict(self.plan, {pattern: self.passes[pattern]}, *known), self.kept)

    def _keep(self, kept: Kept) -> None:
        for name, tensor in kept.items():
            fixed = self.kept.get(name)
            if fixed is None:  # before anything is captured
                self.kept[name] = tensor.clone()
            elif fixed is not tensor:
                fixed.copy_(tensor)

    def _reset(self) -> None:
        """The start of a run."""
        if self.inputs.init is not None:
            self.state[0].copy_(self.inputs.init)
        self.counter.zero_()
        self.numbers.copy_(self._numbers())
        for net, table in time_tables(self.plan, self.passes).items():
            self.times[net].copy_(table)
        self.first_bad.fill_(len(self.plan.rows))
        for (what, _, _), tensor in self.kept.items():
            if what == "weights":
                tensor.copy_(self.plan.weights)
            else:
                tensor.fill_(len(self.plan.rows) if what == "bad_gradient" else 0)

    def _numbers(self) -> Tensor:
        """All of the plan's, `[E, ...]`, so that a part gathers its row at once."""
        return torch.cat([numbers.flatten(1) for numbers in self._columns()], dim=1)

    def _columns(self) -> tuple[Tensor, ...]:
        plan = self.plan
        return plan.table, plan.weights, plan.times[:, None], plan.nag, plan.facts

    def _at(self, row: Row) -> At:
        """The row that the counter tells."""
        columns = [numbers[0] for numbers in self._columns()]
        now = self.numbers.index_select(0, self.counter)[0]
        found = now.split([column.numel() for column in columns])
        views = [one.view(column.shape) for one, column in zip(found, columns, strict=True)]
        table, weights, time, nag, facts = views
        numbers = (table, weights, time[0], nag, facts, facts[Fact.TIME])
        return At(row, self.counter, self.counter[0], *numbers)


def _pattern(row: Row, ended: bool) -> Pattern | None:
    return row.pattern.settled if row.pattern is not None and ended else row.pattern
