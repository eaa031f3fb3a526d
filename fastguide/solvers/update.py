"""What a solver yields: linear maps over named slots. It knows no tensors and no guidance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fastguide.common.options import Configured
from fastguide.process import Level

Map = Mapping[str, float]
SOURCES = ("denoised", "noise", "unclamped", "negative")


@dataclass(frozen=True)
class Update:
    """Evaluate the network at level `at`, then replace slots by weighted sums of slots.

    Slots are "x", "denoised" (of this evaluation), "noise" (fresh standard normals) and any name
    that an earlier update kept; further "unclamped", the denoised image before it was clamped, or
    "negative", the denoised image of the guidance's negative branch alone, which is then evaluated
    whatever its weight. All sums read the old values.

    Args:
        at: the level of x; None for a map of the slots without an evaluation.
        x: the next x.
        keep: other slots to write, by name.
        spread: where it is not 0, noise is scaled per element by `exp(spread v)`, v the variance
            that the network predicts.
        over: from where to where the noise leads, where it may be the increment of one path over
            that stretch (`noise="brownian"`); None where it is of its own.
    """

    at: Level | None
    x: Map
    keep: Mapping[str, Map] = field(default_factory=dict)
    spread: float = 0.0
    over: tuple[Level, Level] | None = None


Solver = Configured[Iterator[Update]]


def combine(*terms: tuple[float, Map]) -> dict[str, float]:
    """The sum of `factor * map`."""
    out: dict[str, float] = {}
    for factor, sources in terms:
        for name, coefficient in sources.items():
            out[name] = out.get(name, 0.0) + factor * coefficient
    return out


def eps(at: Level, image: str = "denoised") -> dict[str, float]:
    """The noise that x holds at `at`, beside the `image`: (x - alpha image) / sigma."""
    return {"x": 1.0 / at.sigma, image: -at.alpha / at.sigma}


def transfer(
    now: Level, to: Level, sigma: float | None = None, image: str = "denoised"
) -> dict[str, float]:
    """`alpha' denoised + sigma eps`, eps beside `image`: with sigma = sigma', the default, DDIM's
    step, in which the denoised image and the noise stay what they are.
    """
    keep = (to.sigma if sigma is None else sigma) / now.sigma
    if image == "denoised" or keep == 0.0:
        return {"x": keep, "denoised": to.alpha - now.alpha * keep}
    return {"x": keep, "denoised": to.alpha, image: -now.alpha * keep}
