"""Multistep solvers of ComfyUI: RES and gradient estimation, each plain and as CFG++."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastguide.common.options import Configured
from fastguide.solvers.adams import falling
from fastguide.solvers.ddim import ancestral_split
from fastguide.solvers.dpm import scaled
from fastguide.solvers.dpmpp import growth, integrals
from fastguide.solvers.update import Map, Update, combine, eps, transfer
from fastguide.spacing import Levels


def _res(levels: Levels, eta: float, s_noise: float, image: str) -> Iterator[Update]:
    """`image` "negative" is CFG++: the exponential step of the negative's images from x moved by
    the guided image less the negative's.
    """
    before: float | None = None  # from the level of "previous" to where its step ended
    steps = list(levels.steps())
    for i, (now, to) in enumerate(steps):
        down, up = ancestral_split(now, to, eta)
        end = scaled(to, down)
        h = growth(now, end)
        x: dict[str, float] = transfer(now, to, end.sigma, image)
        large = levels.rising and i + 1 == len(steps)  # far larger than what was before
        if math.isfinite(h) and before is not None and not large:
            first, second, _ = integrals(h)
            bend = second * h / before
            moved = {"x": 1.0}
            if image == "negative":
                moved = {"x": 1.0, "denoised": now.alpha, image: -now.alpha}
            images = combine((first + bend, {image: 1.0}), (-bend, {"previous": 1.0}))
            x = combine((end.sigma / now.sigma, moved), (to.alpha, images))
        drawn = s_noise * to.alpha * up
        if drawn:
            x["noise"] = drawn
        kept: dict[str, Map] = {"previous": {image: 1.0}}
        last = image == "negative" and to.sigma == 0.0  # it need not be evaluated for this
        yield Update(now, x, {} if last else kept, over=(now, to))
        # the next step's distance back, which the authors measure from where this step aimed
        before = growth(now, end) if math.isfinite(h) else None


@Configured
def res_multistep(levels: Levels, eta: float = 0.0, s_noise: float = 1.0) -> Iterator[Update]:
    """RES, the refined exponential solver of order 2, multistep (Zhang et al. 2023; ComfyUI): with
    eta 0 the rows of dpmpp_2m with solver_type "heun". With eta it is ancestral, as published: the
    line goes through the last image as if at where its step aimed, not where noise took it.
    """
    yield from _res(levels, eta, s_noise, "denoised")


@Configured
def res_multistep_cfgpp(levels: Levels, eta: float = 0.0, s_noise: float = 1.0) -> Iterator[Update]:
    """res_multistep for CFG++ (ComfyUI); guide with a scale in [0, 1]."""
    yield from _res(levels, eta, s_noise, "negative")


def _estimation(levels: Levels, gamma: float, image: str) -> Iterator[Update]:
    if gamma != 1.0:
        falling(levels, "gradient_estimation")
    known = False
    for now, to in levels.steps():
        x = transfer(now, to, image=image)
        if now.alpha * to.alpha * to.sigma == 0.0:
            yield Update(now, x)
            known = False
            continue
        here = eps(now, image)
        if known:
            gain = (gamma - 1.0) * to.alpha * (to.ratio - now.ratio)
            x = combine((1.0, x), (gain, combine((1.0, here), (-1.0, {"eps1": 1.0}))))
        yield Update(now, x, {"eps1": here})
        known = True


@Configured
def gradient_estimation(levels: Levels, gamma: float = 2.0) -> Iterator[Update]:
    """Gradient estimation (Permenter and Yuan 2024): Euler along `gamma eps + (1 - gamma)
    eps_before` in x / alpha over sigma / alpha. gamma 1 is ddim, 2 the published.
    """
    yield from _estimation(levels, gamma, "denoised")


@Configured
def gradient_estimation_cfgpp(levels: Levels, gamma: float = 2.0) -> Iterator[Update]:
    """gradient_estimation for CFG++ (ComfyUI), on the negative branch's eps."""
    yield from _estimation(levels, gamma, "negative")
