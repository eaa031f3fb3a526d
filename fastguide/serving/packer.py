"""Packs requests into batches, on a thread that nothing ends but the end of its requests."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial

from torch import Tensor

from fastguide.serving.requests import Request


class Packer:
    """A worker for each process that asks: a forked child has none of its parent's threads.

    Args:
        batch: the most requests of a batch.
        wait: seconds that a request waits at most for others.
    """

    def __init__(self, batch: int, wait: float) -> None:
        self.batch, self.wait, self.closed = batch, wait, False
        self._workers: dict[int, Worker] = {}

    def put(self, request: Request) -> Future[Tensor]:
        """Queue a request.

        Raises:
            RuntimeError: the packer was closed, or its thread was ended.
        """
        if self.closed:
            raise RuntimeError("the sampler was closed, it takes no more requests")
        worker = self._workers.get(os.getpid())
        if worker is None:  # setdefault is one step to other threads
            worker = self._workers.setdefault(os.getpid(), Worker(self.batch, self.wait))
        worker.put(request)
        return request.future

    def close(self, timeout: float | None = None) -> None:
        """Take no more requests, and wait until those that were taken are done: at most `timeout`
        seconds, after which they fail, and not at all on the thread that resolves them.
        """
        self.closed = True
        worker = self._workers.get(os.getpid())
        if worker is not None:
            worker.close(timeout)

    def stop(self) -> None:
        """Let the thread end, without a wait: nobody is left to ask."""
        worker = self._workers.get(os.getpid())
        if worker is not None:
            worker.queue.put(None)  # takes no lock, as this is called from a garbage collection


class Worker:
    """The thread. It starts with the first request, and between batches it refers to no request,
    thus to no sampler.
    """

    def __init__(self, batch: int, wait: float) -> None:
        self.batch, self.wait = batch, wait
        self.queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.open, self.closed = True, False
        self.failure: BaseException | None = None
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._work, name="fastguide-requests", daemon=True)

    def put(self, request: Request) -> None:
        """Queue a request; RuntimeError where it could not be answered any more."""
        with self.lock:
            if self.failure is not None:
                raise _ended(self.failure)
            if self.closed:
                raise RuntimeError("the sampler was closed, it takes no more requests")
            self.queue.put(request)
            if self.thread.ident is None:
                self.thread.start()

    def close(self, timeout: float | None) -> None:
        """See `Packer.close`."""
        with self.lock:
            self.closed = True
            self.queue.put(None)
        if self.thread.ident is None or threading.current_thread() is self.thread:
            return
        self.thread.join(timeout)
        if self.thread.is_alive():
            text = f"the sampler was closed, and not done within timeout={timeout} seconds"
            self._fail_all(lambda: TimeoutError(text))

    def _work(self) -> None:
        try:
            while self._gather():
                self._take()
                if self.running:
                    self._run()
                self.running = []
        except BaseException as error:  # KeyboardInterrupt and SystemExit, too: end, but tell all
            with self.lock:
                self.failure = error
            self._fail_all(partial(_ended, error))

    def _gather(self) -> bool:
        """Wait for requests until there are enough, or the first has waited long enough; whether
        there are any.
        """
        if not self.waiting and self.open:
            self._get(None)
        while self.open and 0 < len(self.waiting) < self.batch:
            left = self.waiting[0].asked + self.wait - time.monotonic()
            if not self._get(max(left, 0.0)):
                break
        return bool(self.waiting)

    def _get(self, timeout: float | None) -> bool:
        """Whether something came in time."""
        try:
            request = self.queue.get(timeout=timeout)
        except queue.Empty:
            return False
        if request is None:
            self.open = False
        else:
            self.waiting.append(request)
        return True

    def _take(self) -> None:
        """Set the next batch running: requests of one form, the oldest first."""
        form = self.waiting[0].form
        alike = [request for request in self.waiting if request.form == form][: self.batch]
        chosen = set(map(id, alike))
        self.waiting = [request for request in self.waiting if id(request) not in chosen]
        self.running = [request for request in alike if request.start()]

    def _run(self) -> None:
        """Run the batch. Where that fails, each request runs once more, alone: what one brought
        about is not the others' result.
        """
        batch = list(self.running)
        try:
            batch[0].run(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].fail(error)
                return
        for request in batch:
            if request.future.done():
                continue
            try:
                request.run([request])
            except Exception as error:
                request.fail(error)

    def _fail_all(self, error: Callable[[], BaseException]) -> None:
        """Fail whatever is not done, each with an error of its own."""
        lost = [*self.running, *self.waiting]
        with suppress(queue.Empty):
            while True:
                request = self.queue.get_nowait()
                lost += [] if request is None else [request]
        self.running, self.waiting, self.open = [], [], False
        for request in lost:
            with suppress(BaseException):  # of a callback: the next one is told all the same
                request.fail(error())


def _ended(by: BaseException) -> RuntimeError:
    """The error of requests that the thread has not answered, or will not."""
    error = RuntimeError(f"the sampler takes no more requests: {by!r} ended its thread")
    error.__cause__ = by
    return error
