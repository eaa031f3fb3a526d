"""DDIM and, as its stochastic special cases, DDPM (Ho et al. 2020; Song et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.update import Update, transfer
from fastguide.spacing import Levels


def transition_std(now: Level, to: Level) -> float:
    """Standard deviation of x_now given x_to: sigma_now^2 - (alpha_now / alpha_to)^2 sigma_to^2,
    and the root of it.
    """
    ratio = now.alpha * to.sigma / to.alpha
    return math.sqrt(max((now.sigma - ratio) * (now.sigma + ratio), 0.0))


@Configured
def ddim(levels: Levels, eta: float = 0.0, rederive: bool = True) -> Iterator[Update]:
    """`x' = alpha' denoised + sqrt(sigma'^2 - s^2) eps + s n`, s = eta sigma' / sigma T, where T
    is `transition_std`.

    eta 0 is the deterministic DDIM, Euler in x / alpha over sigma / alpha; eta 1 is ancestral
    sampling with the posterior (smaller) variance (DDIM, eq. 12 and 16). Where the denoised image
    is clamped, eps is that beside the clamped image (ADM); rederive=False keeps the network's own,
    as diffusers does by default.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}, but it should lie in [0, 1]")
    for now, to in levels.steps():
        s = eta * to.sigma / now.sigma * transition_std(now, to) if eta else 0.0
        image = "denoised" if rederive else "unclamped"
        x = transfer(now, to, math.sqrt(to.sigma**2 - s**2), image)
        yield Update(at=now, x={**x, "noise": s} if s else x, over=(now, to))


def ancestral_split(now: Level, to: Level, eta: float) -> tuple[float, float]:
    """(r_down, r_up) of euler_ancestral."""
    if eta < 0.0:
        raise ValueError(f"eta is {eta}, but it should not be negative")
    # r'^2 (1 - r'^2 / r^2), finite also from pure noise, where r is inf
    share = to.ratio / now.ratio if now.alpha > 0.0 else 0.0
    up = min(to.ratio, eta * to.ratio * math.sqrt(max(1.0 - share * share, 0.0)))
    return math.sqrt(max(to.ratio**2 - up**2, 0.0)), up


@Configured
def euler_ancestral(levels: Levels, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Update]:
    """Euler down to less noise than asked for, then fresh noise up to it (k-diffusion).

    In sigma / alpha, written r: `r_up = min(r', eta sqrt(r'^2 (r^2 - r'^2) / r^2))`, and
    `r_down = sqrt(r'^2 - r_up^2)`. With eta 1 on VP levels these are the rows of ddpm. `s_noise`
    multiplies what is drawn.
    """
    for now, to in levels.steps():
        down, up = ancestral_split(now, to, eta)
        x = transfer(now, to, to.alpha * down)
        drawn = to.alpha * up * s_noise
        yield Update(at=now, x={**x, "noise": drawn} if drawn else x, over=(now, to))


@Configured
def ddpm(levels: Levels, variance: str = "small") -> Iterator[Update]:
    """Ancestral sampling. `variance`: "small" is the posterior's (ddim with eta 1); "large" adds
    noise of variance sigma_t|t-1^2, beta_t for consecutive timesteps (the sigma-hat rows of DDIM's
    table 1); "learned" interpolates between their logarithms by `(v + 1) / 2`, per element, where
    the network predicts v (Nichol and Dhariwal 2021, eq. 15).

    None adds noise on the step to the data.
    """
    if variance not in ("small", "large", "learned"):
        raise ValueError(
            f"variance is {variance!r}, but it should be 'small', 'large' or 'learned'"
        )
    for update, (now, to) in zip(ddim(eta=1.0).run(levels), levels.steps(), strict=True):
        if variance == "small" or to.sigma == 0.0:
            yield update
            continue
        small, large = update.x["noise"], transition_std(now, to)
        std = large if variance == "large" else math.sqrt(small * large)
        spread = 0.0 if variance == "large" else 0.5 * math.log(large / small)
        yield Update(now, {**update.x, "noise": std}, spread=spread, over=(now, to))
