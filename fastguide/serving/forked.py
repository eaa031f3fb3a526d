"""Futures in a forked child: what their parent was to resolve nobody would, so they fail there."""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import Future
from typing import Any

_open: weakref.WeakSet[Future[Any]] = weakref.WeakSet()


def watch(future: Future[Any]) -> None:
    """Have `future` fail in processes that are forked from this one before it is resolved."""
    _open.add(future)
    future.add_done_callback(_open.discard)


def _fail_all() -> None:
    """In the child: its only thread is a copy of the one that forked. Locks may be held by others,
    which are gone, and whoever waits or is called back belongs to the parent.
    """
    for future in list(_open):
        _open.discard(future)
        future._condition = threading.Condition()
        future._waiters.clear()
        future._done_callbacks.clear()  # type: ignore[attr-defined]
        if not future.done():
            future.set_exception(
                RuntimeError(
                    f"the request was made in process {os.getppid()}, which alone knows its "
                    "result: a forked process makes requests of its own"
                )
            )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fail_all)
