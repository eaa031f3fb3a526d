"""Spacings that are even in time, or even in time and then shifted towards the noise."""

from __future__ import annotations

import math

from fastguide.common.options import Configured
from fastguide.process import EDM, Flow, Process
from fastguide.spacing.levels import Levels


@Configured
def linspace(process: Process, steps: int) -> Levels:
    """N levels evenly in t: VP from T - 1 to 0, flow from 1 to 1 / N, EDM in sigma."""
    high, low = process.t_max, process.t_min
    if isinstance(process, Flow):
        return Levels.from_times(process, (1.0 - i / steps for i in range(steps)))
    if steps == 1:
        return Levels.from_times(process, [high])
    return Levels.from_times(process, (high + (low - high) * i / (steps - 1) for i in range(steps)))


@Configured
def sgm_uniform(process: Process, steps: int, floor: bool = False) -> Levels:
    """N + 1 levels evenly from the noisiest to the least noisy one, without the latter: ComfyUI's
    sgm_uniform.

    VP: t = (T - 1)(1 - i / N), and with `floor` its whole part, as in Stability's
    generative-models. Flow: linspace. EDM: even in log sigma, which is the network's time.
    """
    if isinstance(process, Flow):
        return linspace.run(process, steps)
    if isinstance(process, EDM):
        low, high = math.log(process.sigma_min), math.log(process.sigma_max)
        inner = (math.exp(high + (low - high) * i / steps) for i in range(1, steps))
        return Levels.from_sigmas(process, [process.sigma_max, *inner])
    times = [process.t_max - i * (process.t_max / steps) for i in range(steps)]
    return Levels.from_times(process, dict.fromkeys(map(math.floor, times)) if floor else times)


@Configured
def shifted(process: Process, steps: int, shift: float = 3.0) -> Levels:
    """Flow: t = s u / (1 + (s - 1) u), u = 1 - i / N (Esser et al. 2024, eq. 23); 1 is linspace."""
    return _shifted(process, steps, "shifted", shift)


@Configured
def shifted_by_size(
    process: Process,
    steps: int,
    tokens: float | None = None,
    base_tokens: float = 256,
    max_tokens: float = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> Levels:
    """Flow: `shifted` with s = exp(mu), t = e^mu / (e^mu + 1 / u - 1), mu linear in the number of
    image tokens: `base_shift` at `base_tokens`, `max_shift` at `max_tokens`, and on beyond both.

    Larger images need more noise to be hidden equally well (Esser et al. 2024, section 5.3.2); the
    line is that of Flux's code.

    Args:
        tokens: of the image, H W / 256 pixels for Flux; it has no default.
    """
    if tokens is None or not 0.0 < tokens < math.inf:
        raise ValueError(
            f"tokens is {tokens}, but spacing 'shifted_by_size' needs the number of image tokens"
        )
    if not 0.0 < base_tokens < max_tokens < math.inf:
        raise ValueError(
            f"base_tokens, max_tokens are {base_tokens}, {max_tokens}, "
            "but they should satisfy 0 < base_tokens < max_tokens"
        )
    for name, value in (("base_shift", base_shift), ("max_shift", max_shift)):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}, but it should be finite")
    share = (tokens - base_tokens) / (max_tokens - base_tokens)
    mu = base_shift + (max_shift - base_shift) * share
    return _shifted(process, steps, "shifted_by_size", math.exp(mu))


@Configured
def flux(process: Process, steps: int, width: float = 1024, height: float = 1024) -> Levels:
    """`shifted_by_size` for `width` by `height` pixels, 16 by 16 of them a token (Flux)."""
    for name, value in (("width", width), ("height", height)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} is {value}, but it should be a number of pixels")
    return shifted_by_size.run(process, steps, width * height / 256.0)


def _shifted(process: Process, steps: int, spacing: str, shift: float) -> Levels:
    if not isinstance(process, Flow):
        raise ValueError(f"spacing is {spacing!r}, which is for Flow, but process is {process}")
    if not 0.0 < shift < math.inf:
        raise ValueError(f"shift is {shift}, but it should be positive")
    evenly = (1.0 - i / steps for i in range(steps))
    return Levels.from_times(process, (shift * u / (1.0 + (shift - 1.0) * u) for u in evenly))
