"""What is known of the images of a run: put back into x after every update.

It costs a run some elementwise passes after each update, and one without it nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastguide import ops
from fastguide.engine.plan import Plan
from fastguide.engine.watch import Watch

Measurement = Callable[[Tensor], Tensor]
_STREAM = 2**32  # no evaluation's number, so that the noise of what is known is its own


@dataclass(frozen=True)
class Known:
    """Images of which a part is known.

    Args:
        image: fp32 `[B, *shape]`.
        mask: fp32 in [0, 1], broadcastable to it: 1 where it is known, between where it is blended.
        measurement: or the part itself: an orthogonal projection of images `[B, *shape]`.
    """

    image: Tensor
    mask: Tensor | None = None
    measurement: Measurement | None = None


def holding(known: Known, plan: Plan, seeds: Tensor) -> Watch:
    """Puts the known part back after every update, at x's own level, with fresh noise by (seed,
    evaluation, element): `x = m (alpha known + sigma n) + (1 - m) x` (Song et al. 2021, appendix
    I.2; RePaint, Lugmayr et al. 2022, eq. 8), or `x + P (alpha known + sigma n - x)`.
    """
    own, image = ops.derive_seeds(seeds, _STREAM), known.image

    def watch(e: int, state: Tensor) -> bool:
        level = plan.level_after(e)
        if level is None:
            return False
        x = state[0][: len(image)]
        noised = level.alpha * image
        if level.sigma > 0.0:
            noised = noised + level.sigma * ops.noise(own, image.shape[1:], e)
        if known.mask is not None:
            x.copy_(known.mask * noised + (1.0 - known.mask) * x)
        if known.measurement is not None:
            x.add_(known.measurement(noised - x))
        return False

    return watch


def both(first: Watch | None, then: Watch | None) -> Watch | None:
    """One after the other."""
    if first is None or then is None:
        return first or then
    one, other = first, then

    def watch(e: int, state: Tensor) -> bool:
        return one(e, state) or other(e, state)

    return watch
