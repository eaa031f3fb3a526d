"""DDIM and, as its stochastic special cases, DDPM (Ho et al. 2020; Song et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastguide.options import Configured
from fastguide.process import Level
from fastguide.solvers.update import Update
from fastguide.spacing import Levels


def transition_std(now: Level, to: Level) -> float:
    """Standard deviation of x_now given x_to: sigma_now^2 - (alpha_now / alpha_to)^2 sigma_to^2,
    and the root of it.
    """
    ratio = now.alpha * to.sigma / to.alpha
    return math.sqrt(max((now.sigma - ratio) * (now.sigma + ratio), 0.0))


@Configured
def ddim(levels: Levels, eta: float = 0.0) -> Iterator[Update]:
    """`x' = alpha' denoised + sqrt(sigma'^2 - s^2) eps + s n`, s = eta sigma' / sigma T, where T
    is `transition_std`.

    eta 0 is the deterministic DDIM, Euler in x / alpha over sigma / alpha; eta 1 is ancestral
    sampling with the posterior (smaller) variance (DDIM, eq. 12 and 16).
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}, but it should lie in [0, 1]")
    for now, to in levels.steps():
        s = eta * to.sigma / now.sigma * transition_std(now, to)
        keep = math.sqrt(to.sigma**2 - s**2) / now.sigma
        x = {"x": keep, "denoised": to.alpha - now.alpha * keep}
        yield Update(at=now, x={**x, "noise": s} if s else x)


@Configured
def ddpm(levels: Levels, variance: str = "small") -> Iterator[Update]:
    """Ancestral sampling. `variance`: "small" is the posterior's (ddim with eta 1); "large" adds
    noise of variance sigma_t|t-1^2, beta_t for consecutive timesteps (the sigma-hat rows of DDIM's
    table 1).

    Neither adds noise on the step to the data.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance is {variance!r}, but it should be 'small' or 'large'")
    for update, (now, to) in zip(ddim(eta=1.0).run(levels), levels.steps(), strict=True):
        if variance == "large" and to.sigma > 0.0:
            yield Update(at=now, x={**update.x, "noise": transition_std(now, to)})
        else:
            yield update
