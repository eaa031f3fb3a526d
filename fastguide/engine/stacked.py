"""Rows of many plans that stack: one layout of slots and numbers for all, and patterns that are
equal wherever runs can share an evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import PREVIEW, Plan, Row
from fastguide.engine.threshold import DynamicThreshold
from fastguide.guidance.base import Branch
from fastguide.guidance.modifiers import Rescale
from fastguide.ops import table as _table

X, DENOISED, HISTORY = 0, 1, 2  # where the slots lie in every stack
SLOTS = _table.MAX_SLOTS
WIDTH = _table.width(SLOTS)
FACTS = WIDTH  # where the columns of an evaluation's numbers begin
TIME = FACTS + 6
NAG = TIME + 1
WEIGHTS = NAG + 1

_RESCALES: dict[tuple[int, float, str], Rescale] = {}


@dataclass(frozen=True)
class Kind:
    """What is static of an evaluation: those of one kind run together.

    Args:
        row: of a plan, less its level, in the stack's slots.
    """

    row: Row
    threshold: DynamicThreshold | None

    def joined(self, other: Kind) -> Kind:
        """The kind of both: slots that either reads, writes or adds noise to. A row's coefficients
        are 0 for what another's reads, and 1 for its own slots that another's writes.
        """
        one, two = self.row, other.row
        row = replace(
            one,
            reads=one.reads | two.reads | ((one.writes | two.writes) & ~1),
            writes=one.writes | two.writes,
            draws=one.draws or two.draws,
        )
        return replace(self, row=row)

    @cached_property
    def shown(self) -> Kind:
        """The kind that also writes the denoised image."""
        return replace(self, row=replace(self.row, writes=self.row.writes | 1 << DENOISED))

    @cached_property
    def key(self) -> object:
        """Equal for kinds that may be joined."""
        row = self.row
        return (row.pattern, row.learned, row.extra, row.after, self.threshold)


class Stackable:
    """One plan in the stack's layout, on the host.

    Attributes:
        kinds: of each row.
        numbers: of each row: `[WIDTH]` of the table, the facts, the time, NAG's scale, and the
            weights of x and of the row's branches.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.batch is not None:
            raise ValueError(
                f"guidance holds values for {plan.batch} samples, but a request is one"
            )
        if plan.path is not None:
            raise ValueError(
                "noise is 'brownian', but requests that share batches draw 'independent' noise"
            )
        history = [name for name in plan.slots if name not in ("x", PREVIEW)]
        if HISTORY + len(history) > SLOTS:
            raise ValueError(
                f"the solver keeps {1 + len(history)} slots, but at most {SLOTS - 1} fit beside "
                "the denoised image"
            )
        self.plan = plan
        places = {"x": X, PREVIEW: DENOISED} | {n: HISTORY + i for i, n in enumerate(history)}
        self.places = [places[name] for name in plan.slots]
        patterns = _canonical(plan)
        self.kinds = [self._kind(*one) for one in zip(plan.rows, patterns, strict=True)]
        self.numbers = self._numbers()
        self._settled: dict[int, tuple[Kind, Tensor]] = {}

    def settled(self, e: int) -> tuple[Kind, Tensor]:
        """The kind and the numbers of a row once adaptive guidance is over."""
        found = self._settled.get(e)
        if found is None:
            kind, numbers = self.kinds[e], self.numbers[e]
            assert kind.row.pattern is not None
            left = kind.row.pattern.settled
            columns = [WEIGHTS] + [
                WEIGHTS + 1 + kind.row.pattern.branches.index(branch) for branch in left.branches
            ]
            kept = torch.cat([numbers[:WEIGHTS], numbers[columns]])
            found = (replace(kind, row=replace(kind.row, pattern=left)), kept)
            self._settled[e] = found
        return found

    def _kind(self, row: Row, pattern: Pattern | None) -> Kind:
        def moved(mask: int) -> int:
            return sum(1 << to for i, to in enumerate(self.places) if mask >> i & 1)

        static = replace(
            row,
            at=None,
            pattern=pattern,
            reads=moved(row.reads),
            writes=moved(row.writes),
            input_scale=1.0,
        )
        return Kind(static, None if pattern is None else self.plan.threshold)

    def _numbers(self) -> list[Tensor]:
        plan, slots = self.plan, len(self.plan.slots)
        table, facts = plan.table.cpu(), plan.facts.cpu()
        out = torch.zeros(len(plan.rows), WEIGHTS, dtype=table.dtype, device="cpu")
        out[:, : _table.Column.MATRIX] = table[:, : _table.Column.MATRIX]
        matrix = out[:, _table.Column.MATRIX : WIDTH].view(-1, SLOTS, SLOTS + 3)
        given = table[:, _table.Column.MATRIX :].view(-1, slots, slots + 3)
        columns = [*self.places, SLOTS, SLOTS + 1, SLOTS + 2]
        stays = torch.eye(SLOTS, SLOTS + 3)
        for e, row in enumerate(plan.rows):
            matrix[e] = stays  # what others write stays as it is
            for i, place in enumerate(self.places):
                if row.writes >> i & 1:
                    matrix[e, place] = 0.0
                    matrix[e, place, columns] = given[e, i]
            matrix[e, DENOISED] = 0.0
            matrix[e, DENOISED, SLOTS] = 1.0
        out[:, FACTS:TIME], out[:, TIME] = facts, plan.times.cpu()
        out[:, NAG] = plan.nag.cpu()[:, 0]
        weights = plan.weights.cpu()[:, 0]
        counts = [0 if row.pattern is None else len(row.pattern.branches) for row in plan.rows]
        rows = zip(out, weights, counts, strict=True)
        return [torch.cat([one, w[: 1 + count]]) for one, w, count in rows]


def _canonical(plan: Plan) -> list[Pattern | None]:
    """The patterns with rescales that are told apart by their number within the plan and by their
    settings, not by who made them.
    """
    numbers: dict[int, Rescale] = {}

    def known(one: Rescale) -> Rescale:
        if id(one) not in numbers:
            key = (len(numbers), one.share, one.space)
            numbers[id(one)] = _RESCALES.setdefault(key, one)
        return numbers[id(one)]

    def plain(branch: Branch) -> Branch:
        if not branch.rescales:
            return branch
        return replace(branch, rescales=tuple(map(known, branch.rescales)))

    def of(pattern: Pattern | None) -> Pattern | None:
        if pattern is None or not any(branch.rescales for branch in pattern.branches):
            return pattern
        branches = tuple(map(plain, pattern.branches))
        return replace(pattern, branches=branches, held=frozenset(map(plain, pattern.held)))

    return [of(row.pattern) for row in plan.rows]
