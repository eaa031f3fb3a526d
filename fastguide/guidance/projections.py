"""Guidance whose weight depends on inner products of its own predictions: APG, CFG-Zero*, TCFG,
MAMBO-G, adaptive guidance.

Each changes the deltas of the guidance within it, one by one, sample by sample. Below c is the
positive prediction, delta = c - u, and w the weight of the guidance within (its scale less 1). All
formulas are those of the papers, rewritten so that nothing cancels where c and u are close.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastguide.common.checks import check_int, check_number
from fastguide.guidance.base import Guidance, Modified, Term, check_guidance
from fastguide.guidance.modifiers import Gram, Space, check_space

# Squares of norms beside those of other vectors: below FAINT weights in fp32 could not hold their
# ratio; a difference below CANCELLED is rounding, as the sums of ops.gram begin in fp32, and the
# ratio of two of them is only known to a hundredth where it is NEGLIGIBLE.
FAINT, CANCELLED, NEGLIGIBLE, TINY = 1e-20, 2.0**-18, 1e-4, 1e-300


def _along(gram: Gram, k: int, coefficient: Tensor) -> Tensor:
    """`coefficient` `[B]` times delta k."""
    return coefficient[:, None] * gram.unit(k)


@dataclass(frozen=True)
class Projected:
    """The arguments of `APG`."""

    eta: float
    radius: float
    momentum: float
    space: Space
    zero_steps: int = 0
    latches: bool = False

    def contribution(self, gram: Gram, k: int, weight: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`w s (m - (1 - eta) <m, c> / |c|^2 c)`, s = min(1, radius / |m|)."""
        delta = gram.unit(k)
        in_x0 = self.space == "denoised"
        gain = gram.gain if in_x0 else torch.ones_like(gram.gain)  # of the delta in that space
        positive = gram.unit("x0" if in_x0 else "p_0")
        size = gain.abs() * gram.inner(delta, delta).clamp(min=0.0).sqrt()
        shrunk = weight * (self.radius / size.clamp(min=TINY)).clamp(max=1.0)
        least = (FAINT * size.square()).clamp(min=TINY)
        norm = torch.maximum(gram.inner(positive, positive), least)
        share = gain * gram.inner(delta, positive) / norm
        along = -shrunk * (1.0 - self.eta) * share
        return _along(gram, k, shrunk) + along[:, None] * positive


@dataclass(frozen=True, eq=False)
class APG(Guidance):
    """Adaptive projected guidance (Sadat et al. 2024): the part of each delta of `guidance` that is
    parallel to the positive prediction is multiplied by `eta`, its norm is held to `radius`, and it
    moves with `momentum`, by published settings a negative one.

    With `eta` 1, `radius` inf and `momentum` 0 it is the guidance itself. Published, scale and
    radius and momentum, with eta 0: SDXL 15, 15, -0.5; SD 2.1 10, 7.5, -0.75; DiT 4, 5, -0.5;
    EDM2-S 4, 2.5, -0.75. So radius and momentum belong to a network, and have no default of their
    own but off; eta has the published one.

    Args:
        guidance: a guidance, such as CFG(4.0), or a sum.
        space: where norm and projection are taken: the "denoised" image, as published, or the
            network's "prediction". Momentum is that of the denoised image.
    """

    guidance: Guidance
    eta: float = 0.0
    radius: float = math.inf
    momentum: float = 0.0
    space: Space = "denoised"

    def __post_init__(self) -> None:
        check_guidance("APG", self.guidance)
        check_number("eta", self.eta, 0.0)
        if self.radius != math.inf:
            check_number("radius", self.radius, 0.0, open_=True)
        check_number("momentum", self.momentum, -1.0, 1.0, open_=True)
        check_space(self.space)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        how = Projected(self.eta, self.radius, self.momentum, self.space)
        return Modified(self.guidance, "projection", how).terms()


@dataclass(frozen=True)
class ZeroStar:
    """The arguments of `CFGZeroStar`."""

    zero_steps: int
    momentum: float = 0.0
    latches: bool = False

    def contribution(self, gram: Gram, k: int, weight: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`(1 + w) c - w s u - c = w (1 - s) c + w s delta`, s = <c, u> / |u|^2; s = 1 where u is
        nothing beside c, which has no direction then.
        """
        positive, delta = gram.unit("p_0"), gram.unit(k)
        u = positive - delta
        square = gram.inner(u, u)
        nothing = square <= NEGLIGIBLE * (gram.inner(positive, positive) + square.abs())
        excess = gram.inner(delta, u) / torch.where(nothing, 1.0, square)  # s - 1
        excess = torch.where(nothing, 0.0, excess)
        return -(weight * excess)[:, None] * positive + _along(gram, k, weight * (1.0 + excess))


@dataclass(frozen=True, eq=False)
class CFGZeroStar(Guidance):
    """CFG-Zero* (Fan et al. 2025): the negative prediction is scaled by `s = <c, u> / |u|^2`,
    `s u + scale (c - s u)`; and in the first `zero_steps` steps the velocity is 0.

    Args:
        zero_steps: how many steps, with all of their evaluations, have the velocity 0. As published
            1, or 4 % of a long run. (Its authors' code names the last of them, so its default 0 is
            1 here.) The default here is none, as a network that predicts no velocity ("flow") has
            none to set to 0: more is an error there.
    """

    guidance: Guidance
    zero_steps: int = 0

    def __post_init__(self) -> None:
        check_guidance("CFGZeroStar", self.guidance)
        check_int("zero_steps", self.zero_steps, 0)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        return Modified(self.guidance, "projection", ZeroStar(self.zero_steps)).terms()


@dataclass(frozen=True)
class Tangential:
    """`TCFG` has no arguments."""

    momentum: float = 0.0
    zero_steps: int = 0
    latches: bool = False

    def contribution(self, gram: Gram, k: int, weight: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`w (c - u')`, u' the projection of u to the leading right singular vector of [c; u].

        That is `u' = q_2 (q_1 c + q_2 u)` with q the leading eigenvector of the Gram matrix of c
        and u: turned by an angle from (1, 1) / sqrt 2, which has a closed form.
        """
        positive, delta = gram.unit("p_0"), gram.unit(k)
        mean = positive - 0.5 * delta
        twice_off = 2.0 * gram.inner(mean, delta)
        difference = 2.0 * gram.inner(mean, mean) - 0.5 * gram.inner(delta, delta)
        angle = 0.5 * torch.atan2(twice_off, difference)
        sin, cos = angle.sin(), angle.cos()
        of_positive = sin * (sin + cos)  # 1 - q_2 (q_1 + q_2)
        of_delta = 0.5 * (cos - sin).square()  # q_2^2
        return (weight * of_positive)[:, None] * positive + _along(gram, k, weight * of_delta)


@dataclass(frozen=True, eq=False)
class TCFG(Guidance):
    """Tangential damping classifier-free guidance (Kwon et al. 2025): of the negative prediction
    only the part along the leading singular vector of both predictions is led away from.
    """

    guidance: Guidance

    def __post_init__(self) -> None:
        check_guidance("TCFG", self.guidance)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        return Modified(self.guidance, "projection", Tangential()).terms()


@dataclass(frozen=True)
class Damped:
    """The arguments of `MAMBO`."""

    alpha: float
    momentum: float = 0.0
    zero_steps: int = 0
    latches: bool = False

    def contribution(self, gram: Gram, k: int, weight: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`w exp(-alpha |delta| / |u|) delta`."""
        delta = gram.unit(k)
        u = gram.unit("p_0") - delta
        ratio = (gram.inner(delta, delta) / gram.inner(u, u).clamp(min=TINY)).clamp(min=0.0).sqrt()
        return _along(gram, k, weight * torch.exp(-self.alpha * ratio))


@dataclass(frozen=True, eq=False)
class MAMBO(Guidance):
    """Magnitude-aware guidance (MAMBO-G, Zhu et al. 2025): the weight is damped by
    `exp(-alpha |delta| / |u|)`, where delta is large beside the negative prediction u. Published:
    alpha 8 with scale 10.
    """

    guidance: Guidance
    alpha: float = 8.0

    def __post_init__(self) -> None:
        check_guidance("MAMBO", self.guidance)
        check_number("alpha", self.alpha, 0.0)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        return Modified(self.guidance, "projection", Damped(self.alpha)).terms()


@dataclass(frozen=True)
class Latched:
    """The arguments of `Adaptive`."""

    similarity: float
    momentum: float = 0.0
    zero_steps: int = 0
    latches: bool = True

    def contribution(self, gram: Gram, k: int, weight: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`w delta` until cos(c, u) exceeds `similarity`; nothing at all evaluations after that.

        With delta and c: `1 - cos` from the sine of the angle, which does not cancel.
        """
        positive, delta = gram.unit("p_0"), gram.unit(k)
        u = positive - delta
        cc, uu, cd = (gram.inner(*two) for two in ((positive,) * 2, (u,) * 2, (positive, delta)))
        dd = gram.inner(delta, delta)
        across = (dd * cc - cd.square()).clamp(min=0.0)  # |c|^2 |delta_|_|^2
        nothing = torch.minimum(uu, cc) <= CANCELLED * (cc + dd)  # and has no direction
        sine = (across / torch.where(nothing, 1.0, cc * uu)).clamp(max=1.0)  # its square
        cosine = torch.where(nothing, 0.0, (1.0 - sine).sqrt() * gram.inner(positive, u).sign())
        off = memory.get("off", torch.zeros_like(cosine, dtype=torch.bool))
        # a sample whose weight is 0 is not looked at, as it would not be alone
        memory["off"] = off | ((cosine > self.similarity) & (weight != 0.0))
        return _along(gram, k, torch.where(off, 0.0, weight))


@dataclass(frozen=True, eq=False)
class Adaptive(Guidance):
    """Adaptive guidance (Castillo et al. 2023): once the cosine of the positive and the negative
    prediction of a sample exceeds `similarity`, it is guided no more. When no sample of a call is,
    the rows of the delta are not computed any more. Published: similarity 0.991.
    """

    guidance: Guidance
    similarity: float = 0.991

    def __post_init__(self) -> None:
        check_guidance("Adaptive", self.guidance)
        check_number("similarity", self.similarity, -1.0, 1.0)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        return Modified(self.guidance, "projection", Latched(self.similarity)).terms()
