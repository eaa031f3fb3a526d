"""Guidance away from another network, another condition or another time: autoguidance, SIMS, ICG,
TSG. With `every=k` the delta is computed at each k-th evaluation and held between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastguide.common.checks import check_number
from fastguide.guidance.base import Amount, Branch, Factor, Guidance, Other, Term, as_channels
from fastguide.model import Model
from fastguide.staging.perturbation import LayerNames, NoisyTime, TimedLayers, as_layers


@dataclass(frozen=True, eq=False)
class AutoGuidance(Guidance):
    """Autoguidance `d_weak + scale (d - d_weak)` (Karras et al. 2024): the negative is a weaker
    network, smaller or less trained, under the SAME condition. No condition is needed.

    Beside `CFG(w_u)`: `d + (w_u - 1) (d - d_u) + (w - 1) (d - d_weak)`.

    Args:
        weak: any model of the same process, prediction and shape.
        scale: 1 is off. Published: 1.7 to 2.85.
        channels: which channels are guided, all by default.
    """

    weak: Model = field(metadata={"loads": "model"})
    scale: Amount
    schedule: Factor = None
    every: int = 1
    channels: Sequence[int] = ()

    def terms(self) -> tuple[Term, ...]:
        channels = as_channels(self.channels)
        branch = Branch(net=Other.of("weak", self.weak), every=self.every, channels=channels)
        return (Term(branch, self.scale, 1.0, "scale", self.schedule),)


@dataclass(frozen=True, eq=False)
class SIMS(Guidance):
    """Self-improving diffusion models with synthetic data: `(1 + weight) s - weight s_auxiliary`
    (Alemohammad et al. 2024), the auxiliary network being the same one, fine-tuned on its own
    samples (`fastguide sims`).

    Args:
        auxiliary: any model of the same process, prediction and shape.
        weight: omega, 0 is off. Published: about 0.6 to 1.5.
    """

    auxiliary: Model = field(metadata={"loads": "model"})
    weight: Amount
    schedule: Factor = None
    every: int = 1

    def terms(self) -> tuple[Term, ...]:
        branch = Branch(net=Other.of("auxiliary", self.auxiliary), every=self.every)
        return (Term(branch, self.weight, 0.0, "weight", self.schedule),)


@dataclass(frozen=True, eq=False)
class ICG(Guidance):
    """Independent condition guidance (Sadat et al. 2024): CFG whose negative is a condition drawn
    at random, for networks trained without condition dropout.

    A class other than the sample's own, or for embeddings Gaussian noise of their mean and standard
    deviation; drawn anew at each evaluation, from the sample's own seed.

    Args:
        scale: 1 is off.
    """

    scale: Amount
    schedule: Factor = None
    every: int = 1

    def terms(self) -> tuple[Term, ...]:
        branch = Branch("random", every=self.every)
        return (Term(branch, self.scale, 1.0, "scale", self.schedule),)


@dataclass(frozen=True, eq=False)
class TSG(Guidance):
    """Time-step guidance (Sadat et al. 2024): the negative sees a perturbed time embedding,
    `embedding + strength t^power n`, with n standard normal by the sample's seed, anew at each
    evaluation, and t = sigma / (alpha + sigma). No condition is needed.

    Args:
        scale: 1 is off.
        strength, power: of the perturbation; its paper tunes them for each network.
        layers: "time" for the whole network, or the layers whose embedding is perturbed: the blocks
            of a DiT, the residual blocks of a U-Net ("input.3.residual", "mid", "all").
    """

    scale: Amount
    strength: float = 1.0
    power: float = 1.0
    layers: LayerNames = "time"
    schedule: Factor = None
    every: int = 1

    def __post_init__(self) -> None:
        for name in ("strength", "power"):
            check_number(name, getattr(self, name), 0.0)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        how = NoisyTime(float(self.strength), float(self.power))
        layers = TimedLayers(as_layers(self.layers))
        branch = Branch(how=how, layers=layers, every=self.every)
        return (Term(branch, self.scale, 1.0, "scale", self.schedule),)
