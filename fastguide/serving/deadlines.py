"""Requests whose time is up fail, whatever the network does: one thread watches all of them."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol


class Expiring(Protocol):
    """What may come too late: called once its time is up, on the watching thread."""

    def expire(self) -> None: ...


Entry = tuple[float, int, Callable[[], Expiring | None]]  # until when, a number, what


class Deadlines:
    """Expires what it was given when its time has come. It holds weak references only, and its
    thread ends when nothing is left to watch.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: list[Entry] = []
        self._numbers = itertools.count()  # of entries, as references have no order
        self._thread: threading.Thread | None = None

    def add(self, one: Expiring, seconds: float) -> None:
        """Expire it that many seconds from now, unless it is gone by then."""
        entry: Entry = (time.monotonic() + seconds, next(self._numbers), weakref.ref(one))
        with self._changed:
            heapq.heappush(self._watched, entry)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="fastguide-deadlines", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def _watch(self) -> None:
        while (one := self._next()) is not None:
            with suppress(BaseException):  # of a callback: the others' time comes all the same
                one.expire()
            del one  # it is not to live until the next one's time

    def _next(self) -> Expiring | None:
        """Wait for the next whose time is up; None where there is none left."""
        with self._changed:
            while self._watched:
                until, _, reference = self._watched[0]
                if reference() is None:
                    heapq.heappop(self._watched)
                elif (left := until - time.monotonic()) > 0:
                    self._changed.wait(min(left, threading.TIMEOUT_MAX))
                else:
                    heapq.heappop(self._watched)
                    if (one := reference()) is not None:
                        return one
            self._thread = None
            return None


_of_process: dict[int, Deadlines] = {}


def deadlines() -> Deadlines:
    """Those of this process: a forked child has none of its parent's threads."""
    found = _of_process.get(os.getpid())
    return found or _of_process.setdefault(os.getpid(), Deadlines())
