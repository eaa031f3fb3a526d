"""What the host learns of a run without waiting for it: that adaptive guidance is off for all."""

from __future__ import annotations

import torch
from torch import Tensor

from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Row
from fastguide.guidance.base import Branch
from fastguide.ops.table import Extra


def capturing(tensor: Tensor) -> bool:
    """Whether what runs now on the tensor's device is captured, so that it has no values yet."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class Latch:
    """Closed some time after the tensors that it is shown are all true, and from then on."""

    def __init__(self) -> None:
        self._closed = False
        self._seen: Tensor | None = None
        self._event: torch.cuda.Event | None = None

    def show(self, off: Tensor) -> None:
        """Look at `off`, a bool tensor: at once on a CPU; on a GPU a copy is begun, which is read
        when it has arrived.
        """
        if self._closed or capturing(off) or type(off) is not Tensor:  # a tensor without data
            return
        if not off.is_cuda:
            self._closed = bool(off.all())
        elif self._event is None:
            self._seen = torch.empty((), dtype=torch.bool, device="cpu", pin_memory=True)
            self._seen.copy_(off.all(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def closed(self) -> bool:
        """Whether it is known by now."""
        if self._event is not None and self._event.query():
            assert self._seen is not None
            self._closed, self._event = self._closed or bool(self._seen), None
        return self._closed


class Latches:
    """One for each branch that adaptive guidance may end."""

    def __init__(self) -> None:
        self._of: dict[Branch, Latch] = {}

    def show(self, branch: Branch, off: Tensor) -> None:
        """Look at which samples the branch is off for, bool `[B]`."""
        self._of.setdefault(branch, Latch()).show(off)

    def pattern(self, row: Row) -> Pattern | None:
        """The row's pattern, less what adaptive guidance has ended by now."""
        if row.pattern is not None and self.ended(row):
            return row.pattern.settled
        return row.pattern

    def ended(self, row: Row) -> bool:
        """Whether the row has branches that may end, and all have."""
        if not self._of:
            return False
        branches = ending(row)
        return bool(branches) and all(b in self._of and self._of[b].closed for b in branches)


def ending(row: Row) -> frozenset[Branch]:
    """The branches of the row that adaptive guidance may end: none where its update reads one."""
    if row.pattern is None or row.extra == Extra.NEGATIVE:
        return frozenset()
    return frozenset(row.pattern.branches) - frozenset(row.pattern.settled.branches)
