"""Continuous requests: single samples with their own seeds, conditions and scales, in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastguide.engine.passes import Conditions
from fastguide.engine.pattern import make_patterns
from fastguide.engine.plan import HOST, Plan
from fastguide.guidance.base import Branch, Guidance
from fastguide.serving.deadlines import deadlines
from fastguide.staging.perturbation import Layers


@dataclass(eq=False)
class Request:
    """One sample that was asked for. Its future is resolved once, by whoever comes first: the batch
    it was in, its deadline, or a caller who cancels it.

    Args:
        conditions: of one sample, bound.
        weights, nag: fp32 `[E, 1, 1 + K]` and `[E, 1]`, in the layout of the plan.
        run: makes the samples of some requests and resolves them.
        timeout: seconds from now on until it fails, or None.
    """

    seed: int
    conditions: Conditions
    weights: Tensor
    nag: Tensor
    run: Callable[[list[Request]], None]
    timeout: float | None = None
    future: Future[Tensor] = field(default_factory=Future)
    asked: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        leaves, form = tree_flatten((self.conditions.fixed, self.conditions.target))
        shapes = [
            (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        # what requests of one batch have in common: the shapes of their conditions
        self.form: object = (str(form), tuple(shapes))
        self._turn = threading.Lock()  # between its start and its deadline
        self._started = self._expired = False
        if self.timeout is not None:
            deadlines().add(self, self.timeout)

    def start(self) -> bool:
        """Whether it is still wanted; from now on it cannot be cancelled."""
        with self._turn:
            if self._started or (self._expired and not self.future.cancelled()):
                return False
            self._started = True
            return self.future.set_running_or_notify_cancel()

    def expire(self) -> None:
        """Fail: its time is up."""
        with self._turn:
            self._expired = True
        self.fail(TimeoutError(f"the request was not done within timeout={self.timeout} seconds"))

    def fail(self, error: BaseException) -> None:
        """Resolve it with an error, unless it is resolved."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)
        if self.future.cancelled():
            self.start()  # which tells those who wait for it among others

    def succeed(self, sample: Tensor) -> None:
        """Resolve it, unless it is resolved."""
        with suppress(InvalidStateError):
            self.future.set_result(sample)


def amounts_of(
    plan: Plan, guidance: Guidance | None, choose: Callable[[Layers], tuple[str, ...]]
) -> tuple[Tensor, Tensor]:
    """Weights `[E, 1, 1 + K]` and NAG's scales `[E, 1]` of another guidance, in the plan's layout.

    Raises:
        ValueError: it has a delta where the plan has none, holds values for several samples, or
            computes a held delta or REG's factor at other evaluations than the plan.
    """
    visited = [row.at for row in plan.rows if row.at is not None]
    found = make_patterns(guidance, visited, [False] * len(visited), choose, plan.levels)
    patterns, weights, nags, batch = found
    if batch is not None:
        raise ValueError(f"guidance holds values for {batch} samples, but a request is one")
    out = torch.zeros(len(plan.rows), 1, plan.weights.shape[2], **HOST)
    nag = torch.ones(len(plan.rows), 1, **HOST)
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
    seeds = torch.tensor(
        [request.seed for request in requests], dtype=torch.int64, device=plan.index.device
    )
    return replace(plan, weights=weights, nag=nag), Conditions(fixed, None, target), seeds


def _together(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]
