"""UniPC (Zhao et al. 2023): a multistep predictor, corrected by the next evaluation for free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.dpmpp import growth
from fastguide.solvers.update import Map, Update, combine, eps, transfer
from fastguide.spacing import Levels

_VALUES = ("value0", "value1", "value2")  # images or noises of the evaluations before, newest first


@dataclass(frozen=True)
class _Interval:
    """A step, its growth of lambda, and how far behind its start the older evaluations lie."""

    now: Level
    to: Level
    h: float
    behind: tuple[float, ...]
    order: int


def _rhos(nodes: Sequence[float], h: float, variant: str) -> tuple[float, list[float]]:
    """B(h), and the weights of the differences (m(node) - m_0) / node, nodes in units of h: those
    that make the integral of a polynomial of degree len(nodes) exact (eq. 10-12). h is that of
    lambda for noises, less that for images.
    """
    scale = h if variant == "bh1" else math.expm1(h)
    if len(nodes) == 1 and variant != "vary":
        return scale, [0.5]  # the authors' choice: the limit for small h
    phi, factorial, right = math.expm1(h) / h - 1.0, 1.0, []
    for k in range(1, len(nodes) + 1):
        factorial *= k
        right.append(phi * factorial / scale)
        phi = phi / h - 1.0 / (factorial * (k + 1))
    rows = [[node**k for node in nodes] for k in range(len(nodes))]
    return scale, [float(r) for r in np.linalg.solve(np.array(rows), np.array(right))]


def _solve(
    step: _Interval, values: Sequence[str], corrector: bool, variant: str, on_noise: bool
) -> dict[str, float]:
    """x at the end of `step` from "start" (x at its begin) and the images (or noises) there and
    before; the corrector also knows that at the end, "value".
    """
    now, to = step.now, step.to
    scale = to.sigma if on_noise else to.alpha
    h = step.h if on_noise else -step.h
    keep = to.alpha / now.alpha if on_noise else to.sigma / now.sigma
    start = {"start": keep, values[0]: -scale * math.expm1(h)}
    nodes = [-distance / step.h for distance in step.behind[: step.order - 1]]
    names = list(values[1 : 1 + len(nodes)])
    if corrector:
        nodes, names = [*nodes, 1.0], [*names, "value"]
    if not nodes:
        return start
    size, rhos = _rhos(nodes, h, variant)
    parts = [
        (-scale * size * rho / node, {name: 1.0, values[0]: -1.0})
        for rho, node, name in zip(rhos, nodes, names, strict=True)
    ]
    return combine((1.0, start), *parts)


@Configured
def unipc(
    levels: Levels,
    order: int = 2,
    variant: str = "bh2",
    corrector: bool = True,
    lower_order_final: bool = False,
    over: str = "image",
    uncorrected: int = 0,
) -> Iterator[Update]:
    """UniPC-p: one evaluation a step, order p + 1 after its start-up.

    At each evaluation the step before is first corrected (UniC), then the next one is predicted
    (UniP); both are one linear map. `variant` is B(h): "bh1" or "bh2"; with "vary" the line of
    order 2 is integrated exactly too. `over` "image" or "noise" is what is predicted. The first
    step is UniPC-1, of order 2, which limits the whole to 3; the step to the data is of order 1.
    Without `corrector` it is the predictor alone; order 1 of that is ddim. The first `uncorrected`
    steps are left as predicted. `lower_order_final` lets the order fall to 1 at the end of the
    run, as diffusers does.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}, but it should be 1, 2 or 3")
    if variant not in ("bh1", "bh2", "vary"):
        raise ValueError(f"variant is {variant!r}, but it should be 'bh1', 'bh2' or 'vary'")
    if over not in ("image", "noise"):
        raise ValueError(f"over is {over!r}, but it should be 'image' or 'noise'")
    if uncorrected < 0 or uncorrected != int(uncorrected):
        raise ValueError(
            f"uncorrected is {uncorrected}, but it should be a whole number, 0 or more"
        )
    order, on_noise = int(order), over == "noise"
    last: _Interval | None = None
    behind: tuple[float, ...] = ()  # distances in lambda of the values before this evaluation
    steps = list(levels.steps())
    for i, (now, to) in enumerate(steps):
        value: Map = eps(now) if on_noise and now.alpha > 0.0 else {"denoised": 1.0}
        corrected: dict[str, float] = {"x": 1.0}
        if corrector and last is not None and i > uncorrected:
            corrected = _solve(last, _VALUES, True, variant, on_noise)
            corrected = combine((corrected.pop("value"), value), (1.0, corrected))
        now_order = min(order, len(behind) + 1, len(steps) - i if lower_order_final else order)
        step = _Interval(now, to, growth(now, to), behind, now_order)
        if math.isfinite(step.h):
            predicted = _solve(step, ("value", *_VALUES), False, variant, on_noise)
            here = predicted.pop("value")
            x = combine((predicted.pop("start"), corrected), (here, value), (1.0, predicted))
        else:
            ends = transfer(now, to)
            x = combine((ends["x"], corrected), (1.0, {"denoised": ends["denoised"]}))
        keep: dict[str, Map] = {"start": corrected, _VALUES[0]: value}
        for j in range(1, min(len(behind), order - 1) + 1):
            keep[_VALUES[j]] = {_VALUES[j - 1]: 1.0}
        yield Update(now, x, keep)
        last = step if math.isfinite(step.h) else None
        behind = (step.h, *(step.h + b for b in behind)) if math.isfinite(step.h) else ()
