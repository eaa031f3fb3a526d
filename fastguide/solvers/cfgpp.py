"""CFG++ (Chung et al. 2024): the guided image, renoised with the negative branch's noise.

Guide with a scale in [0, 1], such as CFG(0.6). Without a negative branch these are the solvers they
are named after.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastguide.common.options import Configured
from fastguide.solvers.ddim import ancestral_split
from fastguide.solvers.dpmpp import growth
from fastguide.solvers.stages import apart, between
from fastguide.solvers.update import Map, Update, combine, transfer
from fastguide.spacing import Levels


@Configured
def ddim_cfgpp(levels: Levels) -> Iterator[Update]:
    """`x' = alpha' denoised + sigma' eps_negative`: DDIM and Euler for CFG++ (algorithm 2)."""
    for now, to in levels.steps():
        yield Update(now, transfer(now, to, image="negative"))


@Configured
def euler_ancestral_cfgpp(
    levels: Levels, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Update]:
    """As ddim_cfgpp, down to less noise and up again with fresh noise as euler_ancestral does."""
    for now, to in levels.steps():
        down, up = ancestral_split(now, to, eta)
        x = transfer(now, to, to.alpha * down, "negative")
        drawn = to.alpha * up * s_noise
        yield Update(now, {**x, "noise": drawn} if drawn else x, over=(now, to))


@Configured
def dpmpp_2s_ancestral_cfgpp(
    levels: Levels, eta: float = 1.0, s_noise: float = 1.0
) -> Iterator[Update]:
    """dpmpp_2s_ancestral on the negative's images, and at the end of each step `alpha'` times the
    guided image less the negative's, both of the step's first evaluation (ComfyUI).
    """
    for now, to in levels.steps():
        down, up = ancestral_split(now, to, eta)
        drawn = to.alpha * up * s_noise
        noise: Map = {"noise": drawn} if drawn else {}
        if down == 0.0 or not apart(now, to):
            x = {**transfer(now, to, to.alpha * down, "negative"), **noise}
            yield Update(now, x, over=(now, to))
            continue
        middle = levels.process.at_ratio(between(now, down, 0.5))
        to_middle, to_end = transfer(now, middle), transfer(now, to, to.alpha * down)
        reach = {"x": to_middle["x"], "negative": to_middle["denoised"]}
        guided = {"x": to_end["x"], "denoised": to.alpha, "negative": -to.alpha}
        yield Update(now, reach, {"stage1": guided})
        x = {"stage1": 1.0, "negative": to_end["denoised"], **noise}
        yield Update(middle, x, over=(now, to))


@Configured
def dpmpp_2m_cfgpp(levels: Levels) -> Iterator[Update]:
    """`y' = denoised + e^-h (y - negative) + (1 - e^-h) (denoised - old) h / (2 h_before)`, `old`
    the negative's image of the step before, y = x / alpha. The history keeps the negative's
    image, as the authors' code does.
    """
    before = math.inf
    for now, to in levels.steps():
        h = growth(now, to)
        x = transfer(now, to, image="negative")
        if math.isfinite(h) and math.isfinite(before):
            bend = to.alpha * -math.expm1(-h) * 0.5 * h / before
            x = combine((1.0, x), (bend, {"denoised": 1.0, "previous": -1.0}))
        kept: dict[str, Map] = {"previous": {"negative": 1.0}}
        yield Update(now, x, kept if to.sigma > 0.0 else {})
        before = h
