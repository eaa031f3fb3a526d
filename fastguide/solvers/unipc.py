"""UniPC (Zhao et al. 2023): a multistep predictor, corrected by the next evaluation for free."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.dpmpp import growth
from fastguide.solvers.update import Map, Update, combine, transfer
from fastguide.spacing import Levels

_IMAGES = ("image0", "image1", "image2")  # denoised images of the evaluations before, newest first


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
    that make the integral of a polynomial of degree len(nodes) exact (eq. 10-12).
    """
    scale = -h if variant == "bh1" else math.expm1(-h)
    if len(nodes) == 1:
        return scale, [0.5]  # the authors' choice: the limit for small h
    phi, factorial, right = math.expm1(-h) / -h - 1.0, 1.0, []
    for k in range(1, len(nodes) + 1):
        factorial *= k
        right.append(phi * factorial / scale)
        phi = phi / -h - 1.0 / (factorial * (k + 1))
    rows = [[node**k for node in nodes] for k in range(len(nodes))]
    return scale, [float(r) for r in np.linalg.solve(np.array(rows), np.array(right))]


def _solve(
    step: _Interval, images: Sequence[str], corrector: bool, variant: str
) -> dict[str, float]:
    """x at the end of `step` from "start" (x at its begin) and the images there and before; the
    corrector also knows the image at the end, "denoised".
    """
    base = transfer(step.now, step.to)
    start = {"start": base["x"], images[0]: base["denoised"]}
    if math.isinf(step.h):
        return start
    nodes = [-distance / step.h for distance in step.behind[: step.order - 1]]
    names = list(images[1 : 1 + len(nodes)])
    if corrector:
        nodes, names = [*nodes, 1.0], [*names, "denoised"]
    if not nodes:
        return start
    scale, rhos = _rhos(nodes, step.h, variant)
    parts = [
        (-step.to.alpha * scale * rho / node, {name: 1.0, images[0]: -1.0})
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
) -> Iterator[Update]:
    """UniPC-p with data prediction: one evaluation a step, order p + 1 after its start-up.

    At each evaluation the step before is first corrected (UniC), then the next one is predicted
    (UniP); both are one linear map. `variant` is B(h): "bh1" or "bh2". The first step is UniPC-1,
    of order 2, which limits the whole to 3; the step to the data is of order 1. Without `corrector`
    it is the predictor alone; order 1 of that is ddim. `lower_order_final` lets the order fall to 1
    at the end of the run, as diffusers does.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}, but it should be 1, 2 or 3")
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant is {variant!r}, but it should be 'bh1' or 'bh2'")
    order = int(order)
    last: _Interval | None = None
    behind: tuple[float, ...] = ()  # distances in lambda of the images before this evaluation
    steps = list(levels.steps())
    for i, (now, to) in enumerate(steps):
        corrected: Map = {"x": 1.0}
        if corrector and last is not None and math.isfinite(last.h):
            corrected = _solve(last, _IMAGES, True, variant)
        now_order = min(order, len(behind) + 1, len(steps) - i if lower_order_final else order)
        step = _Interval(now, to, growth(now, to), behind, now_order)
        predicted = _solve(step, ("denoised", *_IMAGES), False, variant)
        x = combine((predicted.pop("start"), corrected), (1.0, predicted))
        keep: dict[str, Map] = {"start": corrected, _IMAGES[0]: {"denoised": 1.0}}
        for j in range(1, min(len(behind), order - 1) + 1):
            keep[_IMAGES[j]] = {_IMAGES[j - 1]: 1.0}
        yield Update(now, x, keep)
        last = step
        behind = (step.h, *(step.h + b for b in behind)) if math.isfinite(step.h) else ()
