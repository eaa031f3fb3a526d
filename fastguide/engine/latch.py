"""What the host learns of a run without waiting for it: that adaptive guidance is off for all."""

from __future__ import annotations

import torch
from torch import Tensor


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
        if self._closed:
            return
        if not off.is_cuda:
            self._closed = bool(off.all())
        elif self._event is None and not torch.cuda.is_current_stream_capturing():
            self._seen = torch.empty((), dtype=torch.bool, pin_memory=True)
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
