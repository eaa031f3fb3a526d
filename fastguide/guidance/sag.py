"""Self-attention guidance: away from what the network predicts for a blurred image."""

from __future__ import annotations

from dataclasses import dataclass

from fastguide.guidance.base import Amount, Branch, Condition, Factor, Guidance, Term
from fastguide.guidance.layers import terms_of
from fastguide.staging.perturbation import Degraded, LayerNames, Mask, as_layers


@dataclass(frozen=True, eq=False)
class SAG(Guidance):
    """`eps + weight (eps - eps_blurred)` (Hong et al. 2023), one more pass after the first.

    The second pass sees x with its denoised image blurred where the mask is set and its noise kept:
    `x + alpha (M blur(x_0) + (1 - M) x_0 - x_0)`. Works with every process and prediction, and with
    any network unless the mask is that of attention.

    Args:
        weight: 0 is off. Published: 0.5 and 0.8 unconditional, 0.2 conditional (ADM), 0.75 (SD).
        mask: "attention": pixels that get more than `threshold` of attention, where the mean is 1
            (the head-mean map of `layers`, summed over queries). The others are its paper's
            ablations: "global" (all), "high_frequency" (pixels whose high-pass response, by FFT
            from a quarter of the sampling rate on, is more than `threshold` of its mean), "random"
            (a `share` of the pixels by the sample's seed, anew at each evaluation), "square" (the
            centre, a `share` of the area).
        layers: the layer whose attention makes the mask; by default the middle one.
        sigma: of the blur, in pixels; by default 9 from 256 pixels on, 3 from 128 on, else 1.
        kernel_size: odd; by default 31 from 128 pixels on, else 9.
        of: "negative" takes image, mask and condition from the negative branch, as the pipeline for
            Stable Diffusion does.
    """

    weight: Amount
    mask: Mask = "attention"
    layers: LayerNames = "mid"
    sigma: float | None = None
    kernel_size: int | None = None
    threshold: float = 1.0
    share: float = 0.5
    schedule: Factor = None
    of: Condition = "cond"
    every: int = 1

    def terms(self) -> tuple[Term, ...]:
        degraded = Degraded(
            self.mask,
            self.sigma,
            self.kernel_size,
            self.threshold,
            self.share,
            as_layers(self.layers) if self.mask == "attention" else (),
        )
        return terms_of(
            Branch(self.of, degraded=degraded, every=self.every), self.weight, self.schedule
        )
