"""Continuous requests: single samples with their own seeds, conditions and scales, in batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastguide.engine.passes import Conditions
from fastguide.engine.pattern import make_patterns
from fastguide.engine.plan import Plan
from fastguide.guidance.base import Branch, Guidance
from fastguide.staging.perturbation import Layers


@dataclass(frozen=True, eq=False)
class Request:
    """One sample that was asked for.

    Args:
        conditions: of one sample, bound.
        weights, nag: fp32 `[E, 1, 1 + K]` and `[E, 1]`, in the layout of the plan.
    """

    seed: int
    conditions: Conditions
    weights: Tensor
    nag: Tensor
    future: Future[Tensor] = field(default_factory=Future)

    @property
    def form(self) -> object:
        """What requests of one batch have in common: the shapes of their conditions."""
        leaves, form = tree_flatten((self.conditions.fixed, self.conditions.target))
        shapes = [
            (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        return (str(form), tuple(shapes))


def amounts_of(
    plan: Plan, guidance: Guidance | None, choose: Callable[[Layers], tuple[str, ...]]
) -> tuple[Tensor, Tensor]:
    """Weights `[E, 1, 1 + K]` and NAG's scales `[E, 1]` of another guidance, in the plan's layout.

    Raises:
        ValueError: it has a delta where the plan has none, holds values for several samples, or
            computes a held delta or REG's factor at other evaluations than the plan.
    """
    visited = [row.at for row in plan.rows if row.at is not None]
    found = make_patterns(guidance, visited, [False] * len(visited), choose)
    patterns, weights, nags, batch = found
    if batch is not None:
        raise ValueError(f"guidance holds values for {batch} samples, but a request is one")
    out = torch.zeros(len(plan.rows), 1, plan.weights.shape[2], dtype=torch.float64)
    nag = torch.ones(len(plan.rows), 1, dtype=torch.float64)
    at = 0
    for e, row in enumerate(plan.rows):
        if row.pattern is None:
            continue
        pattern = patterns[at]
        planned = [_key(branch) for branch in row.pattern.branches]
        held = {_key(branch) for branch in row.pattern.held}
        for column, branch in enumerate(pattern.branches):
            key = _key(branch)
            if key not in planned:
                raise ValueError(
                    f"guidance has a delta at {row.at} that the sampler's own has not: they may "
                    "differ in scales and weights, and in schedules that are narrower"
                )
            if column and (branch in pattern.held) != (key in held):
                raise ValueError(
                    f"guidance computes a held delta anew at {row.at}, where the sampler's own "
                    "does not"
                )
            out[e, 0, 1 + planned.index(key)] = weights[at][0, 1 + column]
        if pattern.rectified is not None and pattern.refreshed != row.pattern.refreshed:
            raise ValueError(f"guidance refreshes REG's factor at other evaluations than {row.at}")
        if pattern.nag is not None and pattern.nag != row.pattern.nag:
            raise ValueError(f"guidance has a NAG at {row.at} that the sampler's own has not")
        out[e, 0, 0] = weights[at][0, 0]
        nag[e] = nags[at]
        at += 1
    like = plan.weights
    return out.to(like), nag.to(like)


def _key(branch: Branch) -> object:
    """A branch, of whose rescales only the settings tell."""
    settings = tuple((one.share, one.space) for one in branch.rescales)
    return (replace(branch, rescales=()), settings)


def packed(requests: Sequence[Request], plan: Plan) -> tuple[Plan, Conditions, Tensor]:
    """The plan with the requests' weights, their conditions and their seeds, as one batch."""
    weights = torch.cat([request.weights for request in requests], dim=1)
    nag = torch.cat([request.nag for request in requests], dim=1)
    conditions = [request.conditions for request in requests]
    fixed = {
        net: tree_map(_together, *[one.fixed[net] for one in conditions])
        for net in conditions[0].fixed
    }
    target = tree_map(_together, *[one.target for one in conditions])
    seeds = torch.tensor([request.seed for request in requests], device=plan.index.device)
    return replace(plan, weights=weights, nag=nag), Conditions(fixed, None, target), seeds


def _together(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]


class Packer:
    """Packs requests into batches, on a thread of its own.

    Args:
        run: makes the samples of some requests and resolves their futures.
        batch: the most requests of a batch.
        wait: seconds that a request waits at most for others.
    """

    def __init__(self, run: Callable[[list[Request]], None], batch: int, wait: float) -> None:
        self.run, self.batch, self.wait = run, batch, wait
        self.requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.lock, self.closed = threading.Lock(), False
        self.thread = threading.Thread(target=self._work, name="fastguide-requests", daemon=True)
        self.thread.start()

    def put(self, request: Request) -> Future[Tensor]:
        """Queue a request.

        Raises:
            RuntimeError: the packer was closed.
        """
        with self.lock:
            if self.closed:
                raise RuntimeError("the sampler was closed, it takes no more requests")
            self.requests.put(request)
        return request.future

    def close(self) -> None:
        """Take no more requests, and wait until those that were taken are done."""
        with self.lock:
            if not self.closed:
                self.closed = True
                self.requests.put(None)
        self.thread.join()

    def _work(self) -> None:
        waiting: list[Request] = []  # of another form than the last batch
        open_ = True
        while open_ or waiting:
            if not waiting:
                request = self.requests.get()
                if request is None:
                    break
                waiting.append(request)
            open_ = self._fill(waiting) and open_
            first = waiting[0].form
            chosen = [request for request in waiting if request.form == first][: self.batch]
            waiting = [request for request in waiting if request not in chosen]
            live = [r for r in chosen if r.future.set_running_or_notify_cancel()]
            if not live:
                continue
            try:
                self.run(live)
            except BaseException as error:  # whatever it is belongs to those who wait for it
                for request in live:
                    if not request.future.done():
                        request.future.set_exception(error)

    def _fill(self, waiting: list[Request]) -> bool:
        """Add requests until there are enough or time is up; whether more may come."""
        until = time.monotonic() + self.wait
        while len(waiting) < self.batch:
            try:
                left = until - time.monotonic()
                request = self.requests.get(timeout=left) if left > 0 else self.requests.get(False)
            except queue.Empty:
                return True
            if request is None:
                return False
            waiting.append(request)
        return True
