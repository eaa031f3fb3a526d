"""The thread of a server: admits requests, runs evaluations, hands results out."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastguide.engine.latch import ending
from fastguide.engine.stacked import DENOISED, X
from fastguide.engine.watch import STOP, Progress
from fastguide.guidance.base import Branch
from fastguide.sampling.finite import check_finite
from fastguide.sampling.rollout import rollout_of
from fastguide.serving.batches import Batches
from fastguide.serving.choice import choose
from fastguide.serving.live import Live, Places


@dataclass
class Counts:
    """What a server did.

    Args:
        requests, finished, failed, cancelled: how many were asked for, and what became of them.
        waiting, live: how many wait for a place, and how many have one.
        batches, samples: evaluations of batches, and of samples.
        rows: of the networks that were run for these.
        passed: the most evaluations that any request was passed over in a row.
    """

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    waiting: int = 0
    live: int = 0
    batches: int = 0
    samples: int = 0
    rows: int = 0
    passed: int = 0


class _Ends:
    """For whom a branch has ended, on its way to the host."""

    def __init__(self, off: Tensor, branch: Branch, batch: list[Live]) -> None:
        self.branch, self.places = branch, [(one, one.place) for one in batch]
        self.off, self.event = off.clone(), None
        if off.is_cuda:
            self.off = torch.empty(off.shape, dtype=off.dtype, pin_memory=True)
            self.off.copy_(off, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def here(self, wait: bool) -> bool:
        """Whether it has arrived; where it is to `wait`, then it has."""
        if self.event is not None and wait:
            self.event.synchronize()
        return self.event is None or self.event.query()

    def tell(self) -> None:
        """Note it for each request."""
        flags = self.off.tolist()
        for one, place in self.places:
            if flags[place]:
                one.ended.add(self.branch)


class Full(RuntimeError):
    """More requests wait than may."""


class Loop:
    """The thread. It starts with the first request and ends with `stop`, when all is done.

    Args:
        most: the most samples of a batch.
        patience: as `choose` takes it.
        limit: the most requests that wait for a place, or None.
        exact: whether an evaluation must not depend on when the host learns what the device did.
    """

    def __init__(
        self,
        batches: Batches,
        places: Places,
        most: int,
        patience: int,
        limit: int | None,
        exact: bool,
    ) -> None:
        self.batches, self.places = batches, places
        self.most, self.patience, self.limit, self.exact = most, patience, limit, exact
        self.inbox: queue.SimpleQueue[Live | None] = queue.SimpleQueue()
        self.waiting: list[Live] = []
        self.live: list[Live] = []
        self.open, self.closed = True, False
        self.failure: BaseException | None = None
        self.counts = Counts()
        self._arriving: deque[_Ends] = deque()
        self._ahead: deque[torch.cuda.Event] = deque()  # evaluations that the device has not done
        self.observe: Callable[[int, int], None] | None = None  # of each batch: samples, rows
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._work, name="fastguide-server", daemon=True)

    def put(self, one: Live) -> None:
        """Queue a request.

        Raises:
            RuntimeError: it could not be answered any more.
            Full: too many wait.
        """
        with self.lock:
            if self.failure is not None:
                raise _ended(self.failure)
            if self.closed:
                raise RuntimeError("the server was closed, it takes no more requests")
            waiting = self.inbox.qsize() + len(self.waiting)
            if self.limit is not None and waiting >= self.limit:
                raise Full(f"{waiting} requests wait already, and max_queue is {self.limit}")
            self.counts.requests += 1
            self.inbox.put(one)
            if self.thread.ident is None:
                self.thread.start()

    def close(self, timeout: float | None) -> None:
        """Take no more, and wait until what was taken is done: at most `timeout` seconds, after
        which it fails; not at all on the thread itself.
        """
        with self.lock:
            self.closed = True
            self.inbox.put(None)
        if self.thread.ident is None or threading.current_thread() is self.thread:
            return
        self.thread.join(timeout)
        if self.thread.is_alive():
            text = f"the server was closed, and not done within timeout={timeout} seconds"
            self._fail_all(lambda: TimeoutError(text))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _work(self) -> None:
        try:
            if self.batches.setup.device.type == "cuda":
                torch.cuda.set_device(self.batches.setup.device)
            while self._gather():
                self._turn()
        except BaseException as error:  # KeyboardInterrupt and SystemExit, too: end, but tell all
            with self.lock:
                self.failure = error
            self._fail_all(partial(_ended, error))

    def _gather(self) -> bool:
        """Take what came in, wait where nothing is to be done; whether anything is."""
        while True:
            idle = not self.live and not self.waiting and self.open
            try:
                one = self.inbox.get(block=idle)
            except queue.Empty:
                return bool(self.live or self.waiting)
            if one is None:
                self.open = False
            else:
                self.waiting.append(one)
            del one

    def _turn(self) -> None:
        """Let go of who is done, admit who waits, run what needs no network, then one batch."""
        for one in [one for one in self.live if one.done]:
            self._leave(one)
        self._admit()
        while starting := [one for one in self.live if not one.evaluates]:
            self._run(starting)
        if self.live:
            batch = choose(self.live, self.batches.key, self.most, self.patience)
            self.counts.passed = max(self.counts.passed, *(one.longest for one in self.live))
            self._run(batch)
            self._pace()

    def _pace(self) -> None:
        """Let the device be at most two evaluations behind, so that who joins need not wait."""
        if self.batches.setup.device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        self._ahead.append(event)
        if len(self._ahead) > 2:
            self._ahead.popleft().synchronize()

    def _admit(self) -> None:
        """Give places to those that wait: by priority, the oldest first, and who was passed over
        `patience` times before any other.
        """
        kept = []
        for one in self.waiting:
            if one.done:
                self._count(one)
            else:
                kept.append(one)
        self.waiting = kept
        if not self.waiting or not self.places.free:
            return
        late = self.patience
        ordered = sorted(
            self.waiting,
            key=lambda one: (
                one.passed < late,
                -one.priority if one.passed < late else 0,
                one.order,
            ),
        )
        entering = ordered[: len(self.places.free)]
        for one in entering:
            self.places.enter(one)
            one.passed = 0
        youngest = max(one.order for one in entering)
        chosen = set(map(id, entering))
        self.waiting = [one for one in self.waiting if id(one) not in chosen]
        for one in self.waiting:
            one.passed += one.order < youngest
        self.live += entering

    def _run(self, batch: list[Live]) -> None:
        """Run the batch. Where that fails each runs once more, alone: what one brought about is not
        the others' end.
        """
        try:
            state = self.batches.run(batch)
        except Exception as error:
            if len(batch) == 1:
                self._fail(batch[0], error)
                return
            for one in batch:
                try:
                    alone = self.batches.run([one])
                except Exception as own:
                    self._fail(one, own)
                else:
                    self._advance([one], alone)
            return
        self._advance(batch, state)

    def _advance(self, batch: list[Live], state: Tensor) -> None:
        """What follows an evaluation: what is known and shown, latches, and who is finished."""
        pattern = batch[0].now()[0].row.pattern
        if pattern is not None:
            rows = pattern.net_rows * len(batch)
            self.counts.batches += 1
            self.counts.samples += len(batch)
            self.counts.rows += rows
            if self.observe is not None:
                self.observe(len(batch), rows)
        self._latch(batch)
        finished: list[tuple[Live, Tensor]] = []
        for i, one in enumerate(batch):
            try:
                stopped = self._look(one, state[:, i : i + 1])
            except Exception as error:
                self._fail(one, error)
                continue
            if stopped or one.e == len(one.plan.plan.rows):
                finished.append((one, state[DENOISED if stopped else X, i : i + 1].clone()))
        if finished:
            self._finish(finished)

    def _look(self, one: Live, state: Tensor) -> bool:
        """Hold what is known of a sample, show it, note it; whether its callback ends the run."""
        e, row = one.e, one.row
        if one.held is not None:
            one.held(e, state)
            self.places.slot(X)[one.place].copy_(state[X, 0])
        if one.rollout is not None:
            one.rollout[e].copy_(state[X, 0])
        shown = one.previews()
        one.evaluations += row.at is not None
        one.e += 1
        if not shown or one.callback is None or one.done:
            return False
        assert row.at is not None
        images = state[X, 0].clone(), state[DENOISED, 0].clone()
        evaluations = one.plan.plan.evaluations
        return one.callback(Progress(one.evaluations, evaluations, row.at, *images)) is STOP

    def _latch(self, batch: list[Live]) -> None:
        """Note for whom adaptive guidance is over."""
        branches = ending(batch[0].now()[0].row)
        for branch in branches:
            off = self.places.kept.get(("memory", branch, "off"))
            if off is None:
                continue
            self._arriving.append(_Ends(off, branch, batch))
        while self._arriving and self._arriving[0].here(wait=self.exact):
            self._arriving.popleft().tell()

    def _finish(self, finished: list[tuple[Live, Tensor]]) -> None:
        """Hand samples out; one that is not finite fails alone."""
        for one, sample in finished:
            place = slice(one.place, one.place + 1)
            bad = (self.places.first_bad[place], self.places.bad_gradient[place])
            try:
                check_finite(one.plan.plan, sample, *bad, torch.tensor([one.seed]))
                result: Any = sample[0]
                if one.rollout is not None:
                    seeds = torch.tensor([one.seed], device=sample.device)
                    result = rollout_of(one.plan.plan, one.rollout[: one.e, None], seeds)
            except Exception as error:
                self._fail(one, error)
            else:
                with suppress(Exception):  # of a callback
                    one.succeed(result)
                self._leave(one)

    def _fail(self, one: Live, error: BaseException) -> None:
        with suppress(Exception):  # of a callback
            one.fail(error)
        self._leave(one)

    def _leave(self, one: Live) -> None:
        self.live = [other for other in self.live if other is not one]
        self.places.leave(one, self.live)
        self._count(one)

    def _count(self, one: Live) -> None:
        one.drop()
        if one.future.cancelled():
            self.counts.cancelled += 1
        elif one.future.exception() is not None:
            self.counts.failed += 1
        else:
            self.counts.finished += 1

    def _fail_all(self, error: Callable[[], BaseException]) -> None:
        """Fail whatever is not done, each with an error of its own."""
        lost = [*self.live, *self.waiting]
        with suppress(queue.Empty):
            while True:
                one = self.inbox.get_nowait()
                lost += [] if one is None else [one]
        self.open = False
        for one in lost:
            with suppress(BaseException):  # of a callback: the next one is told all the same
                one.fail(error())

    def stats(self) -> Counts:
        """The counts so far."""
        waiting = self.inbox.qsize() + len(self.waiting)
        return replace(self.counts, waiting=waiting, live=len(self.live))


def _ended(by: BaseException) -> RuntimeError:
    """The error of requests that the thread has not answered, or will not."""
    error = RuntimeError(f"the server takes no more requests: {by!r} ended its thread")
    error.__cause__ = by
    return error
