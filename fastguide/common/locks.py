"""A lock that a forked child finds free, whoever held it in the parent."""

from __future__ import annotations

import os
import threading


class ProcessLock:
    """A `threading.Lock` of each process: a fork copies a held lock, but not the thread that would
    release it. For `with` alone.
    """

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def __enter__(self) -> None:
        number = os.getpid()
        lock = self._locks.get(number)
        if lock is None:  # setdefault is one step to other threads
            lock = self._locks.setdefault(number, threading.Lock())
        lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._locks[os.getpid()].release()
