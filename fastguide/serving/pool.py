"""Requests and calls spread over samplers on several devices."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fastguide.common.checks import check_number, shown
from fastguide.ops import as_seeds
from fastguide.sample import Sampler
from fastguide.sampling.finite import NonFiniteError

_THEIR_OWN = (ValueError, TypeError, NonFiniteError)  # errors of a request, not of its device


class Pool:
    """Asks the sampler that has least to do: of those with as few unfinished samples the one that
    was asked longest ago. One that fails is left alone for `rest` seconds while others do not.

    Args:
        samplers: one for each device, with the same settings.
        rest: seconds.

    Raises:
        ValueError, TypeError: there are none, or an argument is of a wrong kind.
    """

    def __init__(self, samplers: Sequence[Sampler], rest: float = 30.0) -> None:
        if not isinstance(samplers, (list, tuple)):
            raise TypeError(f"samplers is {shown(samplers)}, but it should be a list of Samplers")
        if not samplers:
            raise ValueError("samplers is empty, but there should be one for each device")
        for i, one in enumerate(samplers):
            if not isinstance(one, Sampler):
                raise TypeError(f"samplers[{i}] is {shown(one)}, but it should be a Sampler")
        check_number("rest", rest, 0.0)
        self.samplers, self.rest = tuple(samplers), rest
        self.loads = [0] * len(samplers)
        self._asked = [0.0] * len(samplers)
        self._failed = [-rest] * len(samplers)  # when
        self._lock = threading.Lock()

    def __call__(self, cond: Any = None, seeds: Any = 0, **arguments: Any) -> Tensor:
        """A call of one of the samplers, on its device; the arguments are its own."""
        seeds = as_seeds(seeds)  # once, as it may be an iterator
        size = len(seeds)
        number = self._take(size)
        with self._given_back(number, size):
            return self.samplers[number](cond, seeds, **arguments)

    def submit(self, *arguments: Any, **named: Any) -> Future[Tensor]:
        """`submit` of one of the samplers."""
        number = self._take(1)
        try:
            future = self.samplers[number].submit(*arguments, **named)
        except BaseException as error:
            self._give_back(number, 1, error)
            raise

        def done(future: Future[Tensor]) -> None:
            self._give_back(number, 1, None if future.cancelled() else future.exception())

        future.add_done_callback(done)
        return future

    def close(self, timeout: float | None = None) -> None:
        """Close all samplers: finish what was taken, each within `timeout` seconds."""
        for sampler in self.samplers:
            sampler.close(timeout)

    def _take(self, size: int) -> int:
        with self._lock:
            now = time.monotonic()
            number = min(
                range(len(self.samplers)),
                key=lambda i: (now - self._failed[i] < self.rest, self.loads[i], self._asked[i]),
            )
            self.loads[number] += size
            self._asked[number] = now
            return number

    @contextmanager
    def _given_back(self, number: int, size: int) -> Iterator[None]:
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._give_back(number, size, error)

    def _give_back(self, number: int, size: int, error: BaseException | None) -> None:
        with self._lock:
            self.loads[number] -= size
            if isinstance(error, Exception) and not isinstance(error, _THEIR_OWN):
                self._failed[number] = time.monotonic()
