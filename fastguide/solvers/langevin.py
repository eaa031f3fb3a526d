"""Langevin dynamics: annealed (Song and Ermon 2019, 2020), and as the corrector of a predictor
(Song et al. 2021).

Written in y = x / alpha and r = sigma / alpha, where the score of y is (denoised - y) / r^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.ddim import ddpm, transition_std
from fastguide.solvers.update import Update, transfer
from fastguide.spacing import Levels


def _langevin(at: Level, step: float, to: Level) -> dict[str, float]:
    """y' = y + step score + sqrt(2 step) n, as a map from x at `at` to x at the scale of `to`."""
    pull = step / at.ratio**2
    return {
        "x": to.alpha / at.alpha * (1.0 - pull),
        "denoised": to.alpha * pull,
        "noise": to.alpha * math.sqrt(2.0 * step),
    }


@Configured
def annealed_langevin(
    levels: Levels, rate: float = 6.2e-6, inner: int = 5, denoise: bool = True
) -> Iterator[Update]:
    """`inner` Langevin steps of size `rate (r / r_last)^2` at each level, r_last the smallest.

    `denoise` ends with one more evaluation and its denoised image. The defaults are those of
    NCSN v2 on CIFAR-10 (232 levels from 50 to 0.01); NCSN v1 is rate=2e-5, inner=100,
    denoise=False (10 levels from 1 to 0.01). The papers' alpha is twice this step size.
    """
    if not (rate > 0.0 and inner >= 1 and inner == int(inner)):
        raise ValueError(
            f"rate is {rate} and inner {inner}, but rate should be positive and inner a count"
        )
    noisy = [level for level in levels.points if level.sigma > 0.0]
    end = levels.points[-1]
    for i, at in enumerate(noisy):
        if at.alpha == 0.0:
            raise ValueError(f"levels start at {at}, but Langevin dynamics needs alpha above 0")
        step = rate * (at.ratio / noisy[-1].ratio) ** 2
        following = noisy[i + 1] if i + 1 < len(noisy) else (at if denoise else end)
        for j in range(int(inner)):
            yield Update(at, _langevin(at, step, following if j + 1 == inner else at))
    if denoise:
        yield Update(noisy[-1], {"denoised": 1.0})


def _reverse(levels: Levels) -> Iterator[Update]:
    """Reverse diffusion by one Euler-Maruyama step each (Song et al. 2021, eq. 46), whose last, to
    the data, is the denoised image.
    """
    for now, to in levels.steps():
        if to.sigma == 0.0 or now.alpha == 0.0:
            x = transfer(now, to, 0.0)
            yield Update(now, {**x, "noise": to.sigma} if to.sigma else x, over=(now, to))
            continue
        keep, std = now.alpha / to.alpha, transition_std(now, to)
        pull = std**2 / now.sigma**2  # of the score, (alpha denoised - x) / sigma^2
        x = {"x": 2.0 - keep - pull, "denoised": now.alpha * pull, "noise": std}
        yield Update(now, x, over=(now, to))


@Configured
def predictor_corrector(
    levels: Levels, snr: float = 0.16, corrections: int = 1, predictor: str = "small"
) -> Iterator[Update]:
    """Langevin corrections before every step of a predictor: ddpm with its "small" or "large"
    variance.

    In score_sde's words, on EDM levels: "small" is its ancestral sampling, "large" its reverse
    diffusion. On VP levels "large" is its ancestral sampling, whose variance is beta; its reverse
    diffusion is "reverse" here, `x' = (2 - a) x + (1 - a^2) score + sqrt(1 - a^2) n` with a =
    alpha / alpha', which differs from that in the second order of beta.

    The step size is `2 (snr r)^2`, on VP levels times `(alpha / alpha')^2`: that of Song et al.
    2021, with the norm of the score at its expectation sqrt(D) / r, so that no reduction over the
    batch ties samples together. N (1 + corrections) evaluations.
    """
    if snr <= 0.0 or corrections < 0 or corrections != int(corrections):
        raise ValueError(
            f"snr is {snr} and corrections {corrections}, but snr should be positive and "
            "corrections a count"
        )
    updates = _reverse(levels) if predictor == "reverse" else ddpm(variance=predictor).run(levels)
    for update, (now, to) in zip(updates, levels.steps(), strict=True):
        if now.alpha > 0.0:
            step = 2.0 * (snr * now.ratio * min(1.0, now.alpha / to.alpha)) ** 2
            for _ in range(int(corrections)):
                yield Update(now, _langevin(now, step, now))
        yield update
