"""One request of a server: its plan, how far it is, and the future that is resolved once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastguide.engine.evaluate import Kept
from fastguide.engine.passes import Conditions
from fastguide.engine.plan import Row
from fastguide.engine.stacked import Kind, Stackable
from fastguide.engine.watch import Callback, Watch
from fastguide.guidance.base import Branch, Other
from fastguide.serving.deadlines import deadlines

_NUMBERS = itertools.count()


@dataclass(eq=False)
class Live:
    """A request, from its submission until its future is done. The future stays pending all along,
    so that it can be cancelled at any evaluation.

    Args:
        plan: its rows.
        conditions: of one sample, bound.
        times: for each network that embeds times, what it has for each row.
        init: fp32 `[*shape]`, what x is before the first row.
        held: puts what is known of the sample back after each update, or None.
        watched: the evaluations, 1, 2, ..., after which `callback` is shown the denoised image.
        rollout: fp32 `[E, *shape]`, where x after each row is to be written, or None.
        priority: larger goes first.
        timeout: seconds until it fails, or None.
    """

    seed: int
    plan: Stackable
    conditions: Conditions
    times: Mapping[Other | None, Tensor] = field(default_factory=dict)
    init: Tensor | None = None
    held: Watch | None = None
    watched: Collection[int] = ()
    callback: Callback | None = None
    rollout: Tensor | None = None
    priority: float = 0.0
    timeout: float | None = None
    future: Future[Any] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.asked, self.order = time.monotonic(), next(_NUMBERS)
        self.e = self.evaluations = 0  # the next row; evaluations so far
        self.place = -1  # of its slots, once it is live
        self.passed = 0  # evaluations of others since its own last one
        self.longest = 0  # the most of these
        self.kept: set[tuple[str, Branch, str]] = set()
        self.ended: set[Branch] = set()  # what adaptive guidance has ended
        self.key: tuple[int, int, int] = (
            -1,
            -1,
            -1,
        )  # at which row, after how many ends: which key
        self._turn = threading.Lock()
        self._told = False
        if self.timeout is not None:
            deadlines().add(self, self.timeout)

    @property
    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.future.done()

    @property
    def row(self) -> Row:
        """The plan's next row."""
        return self.plan.plan.rows[self.e]

    @property
    def evaluates(self) -> bool:
        """Whether its next row is an evaluation."""
        return self.plan.kinds[self.e].row.pattern is not None

    def now(self) -> tuple[Kind, Tensor]:
        """The kind and the numbers of its next row."""
        kind = self.plan.kinds[self.e]
        pattern = kind.row.pattern
        if self.ended and pattern is not None:
            off = frozenset(pattern.branches) - frozenset(pattern.settled.branches)
            if off and off <= self.ended:
                return self.plan.settled(self.e)
        return kind, self.plan.numbers[self.e]

    def previews(self) -> bool:
        """Whether its next evaluation is shown."""
        return self.evaluates and self.evaluations + 1 in self.watched

    def expire(self) -> None:
        """Fail: its time is up."""
        self.fail(TimeoutError(f"the request was not done within timeout={self.timeout} seconds"))

    def fail(self, error: BaseException) -> None:
        """Resolve it with an error, unless it is resolved."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)
        self._tell()

    def succeed(self, result: Any) -> None:
        """Resolve it, unless it is resolved."""
        with suppress(InvalidStateError):
            self.future.set_result(result)
        self._tell()

    def drop(self) -> None:
        """Let go of one that is done: those who wait for a cancelled one among others are told."""
        self._tell()

    def _tell(self) -> None:
        with self._turn:
            if self._told or not self.future.cancelled():
                return
            self._told = True
        self.future.set_running_or_notify_cancel()


class Places:
    """Where the state of live requests lies: for each slot, and for each thing that evaluations
    keep, one tensor with a row for each place; made when it is first written, dropped when nobody
    has it.
    """

    def __init__(self, count: int, shape: tuple[int, ...], device: torch.device) -> None:
        self.count, self.shape, self.device = count, shape, device
        self.free = list(range(count))[::-1]
        self.slots: dict[int, Tensor] = {}
        self.kept: Kept = {}
        self.first_bad = torch.zeros(count, dtype=torch.int32, device=device)
        self.bad_gradient = torch.zeros(count, dtype=torch.int64, device=device)

    def slot(self, number: int) -> Tensor:
        """`[count, *shape]`."""
        if number not in self.slots:
            size = (self.count, *self.shape)
            self.slots[number] = torch.zeros(size, dtype=torch.float32, device=self.device)
        return self.slots[number]

    def enter(self, one: Live) -> None:
        """Give a request a place: zeros, or its init."""
        one.place = self.free.pop()
        for tensor in (*self.slots.values(), *self.kept.values()):
            tensor[one.place].zero_()
        if one.init is not None:
            self.slot(0)[one.place].copy_(one.init)
        rows = len(one.plan.plan.rows)
        self.first_bad[one.place] = rows
        self.bad_gradient[one.place] = rows

    def leave(self, one: Live, left: Collection[Live]) -> None:
        """Take its place back; what none of those that are `left` keeps is dropped."""
        self.free.append(one.place)
        one.place = -1
        if one.kept:
            wanted = set().union(*(other.kept for other in left))
            self.kept = {name: tensor for name, tensor in self.kept.items() if name in wanted}

    def keep(self, name: tuple[str, Branch, str], rows: Tensor, index: Tensor) -> None:
        """Write what evaluations left, a row for each of the places `index`."""
        if name not in self.kept:
            self.kept[name] = rows.new_zeros((self.count, *rows.shape[1:]))
        self.kept[name].index_copy_(0, index, rows)
