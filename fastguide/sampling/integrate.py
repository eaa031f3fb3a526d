"""Ordinary differential equations to a tolerance: Dormand and Prince's pair of orders 5 and 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST = 10_000  # steps

# Dormand and Prince (1980): the stages, the fifth order, and its difference to the fourth
_SHARES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

State = tuple[Tensor, ...]
Slope = Callable[[float, State], State]


def rk45(
    slope: Slope, state: State, start: float, end: float, rtol: float, atol: float
) -> tuple[State, int, int]:
    """Integrate tensors `[B, ...]` from `start` to `end`; returns them, and the steps accepted and
    rejected. The error of a step is the largest of any sample of the root mean square of
    `error / (atol + rtol max(|before|, |after|))`, over all tensors.
    """
    at, way = start, math.copysign(1.0, end - start)
    size = 0.01 * abs(end - start)
    first = slope(at, state)
    accepted = rejected = 0
    while way * (end - at) > 1e-12:
        if accepted + rejected >= MOST:
            raise RuntimeError(f"no end after {MOST} steps; rtol, atol are {rtol}, {atol}")
        size = min(size, way * (end - at))
        h = way * size
        slopes = [first]
        for share, weights in zip(_SHARES[1:], _STAGES, strict=True):
            moved = _moved(state, h, weights, slopes)
            slopes.append(slope(at + share * h, moved))
        after = moved  # the last stage is the fifth order's end
        error = _largest(_moved(None, h, _ERROR, slopes), state, after, rtol, atol)
        if not math.isfinite(error):
            raise RuntimeError(f"the slope is not finite near {at}")
        if error <= 1.0:
            at, state, first = at + h, after, slopes[-1]
            accepted += 1
        else:
            rejected += 1
        size *= min(10.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    return state, accepted, rejected


def _moved(
    state: State | None, h: float, weights: Sequence[float], slopes: Sequence[State]
) -> State:
    sums = [
        sum((h * w * one for w, one in zip(weights, parts, strict=False) if w), torch.zeros(()))
        for parts in zip(*slopes, strict=True)
    ]
    if state is None:
        return tuple(sums)
    return tuple(x + moved for x, moved in zip(state, sums, strict=True))


def _largest(error: State, before: State, after: State, rtol: float, atol: float) -> float:
    batch = before[0].shape[0]
    parts = [
        (e / (atol + rtol * torch.maximum(a.abs(), b.abs()))).reshape(batch, -1).square()
        for e, a, b in zip(error, before, after, strict=True)
    ]
    return float(torch.cat(parts, 1).mean(1).sqrt().max())
