"""SA-Solver (Xue et al. 2023): stochastic Adams methods on the denoised image.

Over a step of h in lambda with noise tau, a = 1 + tau^2,
`x' = sigma' / sigma e^(-tau^2 h) x + alpha' a int e^(-a (lambda' - l)) D(l) dl + sigma' sqrt(1 -
e^(-2 tau^2 h)) n`, with D a polynomial through the images before (predictor) and the one at the end
of the step too (corrector). Both take the same n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.adams import integrals
from fastguide.solvers.dpmpp import growth
from fastguide.solvers.stages import apart
from fastguide.solvers.update import Map, Update, combine, transfer
from fastguide.spacing import Levels

_IMAGES = ("denoised", "image1", "image2", "image3")  # newest first


def _weights(now: Level, to: Level, nodes: Sequence[float], a: float, simple: bool) -> list[float]:
    """Of the images at the `nodes`, which are lambdas of 0 = `now`; h is `to`."""
    h = growth(now, to)
    if simple and len(nodes) == 2:
        # the line's slope integrated without its weight, where order 2 allows it
        base, other = sorted(range(2), key=lambda k: abs(nodes[k]))
        weights = [0.0, 0.0]
        weights[other] = 0.5 * h * h * a / nodes[other]
        weights[base] = -math.expm1(-a * h) - weights[other]
    else:
        weights = integrals(nodes, 0.0, h, lambda at: a * math.exp(a * (at - h)))
    return [to.alpha * weight for weight in weights]


@Configured
def sa_solver(
    levels: Levels,
    tau: float = 1.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    predictor_order: int = 2,
    corrector_order: int = 2,
    s_noise: float = 1.0,
    pece: bool = False,
    simple_order_2: bool = False,
    lower_order_final: bool = False,
) -> Iterator[Update]:
    """Predictor and corrector, one evaluation a step; with `pece` the corrected x is evaluated too.

    `tau` is the share of the reverse process's noise, 0 the ODE, for steps from sigma / alpha in
    [`s_min`, `s_max`]; elsewhere none is added. Orders are 1 to 4, `corrector_order` 0 is none.
    `simple_order_2` is the authors' rule for order 2, which diffusers has too. With
    `lower_order_final` the orders fall at the end of the run.
    """
    for name, order, low in (
        ("predictor_order", predictor_order, 1),
        ("corrector_order", corrector_order, 0),
    ):
        if order not in range(low, 5):
            raise ValueError(f"{name} is {order}, but it should be {low} to 4")
    if not 0.0 <= tau < math.inf or not 0.0 <= s_noise < math.inf:
        raise ValueError(f"tau is {tau} and s_noise {s_noise}, but they should not be negative")
    predictor, corrector = int(predictor_order), int(corrector_order)
    kept = max(predictor, corrector - 1) - 1  # images before this one
    past: list[float] = []  # lambdas of them, as distances from this one, newest first
    gain: float | None = None  # of this image in the correction of the step that led here
    steps = list(levels.steps())
    inner, lower = sum(apart(now, to) for now, to in steps), lower_order_final or levels.rising
    for now, to in steps:
        x: Map = {"x": 1.0}
        if gain is not None:
            x = {"half": 1.0, "denoised": gain}
            if pece:
                yield Update(now, x)
                x = {"x": 1.0}
        t = tau if s_min <= now.ratio <= s_max else 0.0
        keep: dict[str, Map] = {}
        for j in range(1, min(len(past), kept - 1) + 1):
            keep[_IMAGES[j + 1]] = {_IMAGES[j]: 1.0}
        if kept:
            keep["image1"] = {"denoised": 1.0}
        if not apart(now, to):
            fresh = t > 0.0 and now.alpha == 0.0 and to.sigma > 0.0
            end = transfer(now, to, 0.0 if fresh else to.sigma)
            added: Map = {"noise": s_noise * to.sigma} if fresh and s_noise else {}
            image = {"denoised": end["denoised"]}
            yield Update(
                now, combine((end["x"], x), (1.0, image), (1.0, added)), keep, over=(now, to)
            )
            past, gain = [], None
            continue
        h = growth(now, to)
        stays = to.sigma / now.sigma * math.exp(-t * t * h)
        drawn = s_noise * to.sigma * math.sqrt(-math.expm1(-2.0 * t * t * h))
        base = combine((stays, x), (1.0, {"noise": drawn} if drawn else {}))
        order = min(predictor, len(past) + 1, inner if lower else predictor)
        behind = [0.0, *(-distance for distance in past)]
        weights = _weights(now, to, behind[:order], 1.0 + t * t, simple_order_2)
        predicted = combine((1.0, base), (1.0, dict(zip(_IMAGES, weights, strict=False))))
        order = min(corrector, len(past) + 2, inner + 1 if lower else corrector)
        gain = None
        if order:
            nodes = [h, *behind[: order - 1]]
            gain, *weights = _weights(now, to, nodes, 1.0 + t * t, simple_order_2)
            keep["half"] = combine((1.0, base), (1.0, dict(zip(_IMAGES, weights, strict=False))))
        yield Update(now, predicted, keep, over=(now, to))
        past = [h, *(h + distance for distance in past)][:kept]
        inner -= 1
