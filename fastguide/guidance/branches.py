"""Guidance with two conditions beside the positive one: by text and image, and Perp-Neg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from fastguide.guidance.base import Amount, Branch, Factor, Guidance, Term
from fastguide.guidance.modifiers import Gram
from fastguide.guidance.schedule import values_of
from fastguide.process import Level


@dataclass(frozen=True, eq=False)
class TextImageCFG(Guidance):
    """`d_u + image_scale (d_i - d_u) + scale (d_c - d_i)` (InstructPix2Pix, Brooks et al. 2023;
    OmniGen): c under text and image, i under the image alone, which is the call's `negative`, and u
    under neither, which is the model's null condition. Three rows a sample.

    With `image_scale` equal to `scale` it is CFG away from u. Published: 7.5 and 1.5.

    Args:
        scale, image_scale: numbers, or schedules of them; 1 and 1 is off.
    """

    scale: Amount
    image_scale: Amount = 1.5
    schedule: Factor = None
    every: int = 1

    def terms(self) -> tuple[Term, ...]:
        # c + (scale - image_scale) (c - i) + (image_scale - 1) (c - u)
        image, null = Branch("negative", every=self.every), Branch("null", every=self.every)
        return (
            Term(image, self.scale, 1.0, "scale", self.schedule),
            Term(image, self.image_scale, 1.0, "image_scale", self.schedule, sign=-1.0),
            Term(null, self.image_scale, 1.0, "image_scale", self.schedule),
        )


@dataclass(frozen=True)
class Perpendicular:
    """What of a negative's direction is perpendicular to the positive's; both from the null's."""

    momentum: float = 0.0
    zero_steps: int = 0
    latches: bool = False

    def contribution(self, gram: Gram, k: int, weight: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`-weight (e_n - <e_n, e_c> / |e_c|^2 e_c)`, e_c = c - u and e_n = n - u."""
        if gram.null is None:
            raise ValueError(
                "scale is 1 at an evaluation, where PerpNeg has no null rows; let its schedule be "
                "0 there"
            )
        positive = gram.unit(gram.null)
        negative = positive - gram.unit(k)
        size = gram.inner(positive, positive)
        nothing = size <= 0.0
        share = gram.inner(negative, positive) / torch.where(nothing, 1.0, size)
        share = torch.where(nothing, 0.0, share)
        return -weight[:, None] * (negative - share[:, None] * positive)


@dataclass(frozen=True)
class _Product:
    """The scale times the negative's weight."""

    scale: Amount
    weight: Amount

    def values(self, levels: Sequence[Level]) -> list[float]:
        """One for each evaluation."""
        found = []
        for amount in (self.scale, self.weight):
            if isinstance(amount, Real):
                found.append([float(amount)] * len(levels))
            else:
                assert not isinstance(amount, Tensor)
                found.append(values_of(amount, levels))  # type: ignore[arg-type]
        return [a * b for a, b in zip(*found, strict=True)]


@dataclass(frozen=True, eq=False)
class PerpNeg(Guidance):
    """Perp-Neg (Armandpour et al. 2023): of what a negative prompt says only the part that is
    perpendicular to the positive one is led away from:
    `d_u + scale (e_c - weight (e_n - <e_n, e_c> / |e_c|^2 e_c))`, e_c = d_c - d_u, e_n = d_n - d_u,
    with d_n under the call's `negative` and d_u under the model's null condition. Three rows a
    sample.

    Args:
        scale: not 1; a number, or a schedule.
        weight: of the negative prompt, 0 is CFG; likewise.
    """

    scale: Amount
    weight: Amount = 1.0
    schedule: Factor = None

    def __post_init__(self) -> None:
        for name in ("scale", "weight"):
            if isinstance(getattr(self, name), Tensor):
                raise TypeError(f"{name} is a tensor, but PerpNeg takes one number for all samples")
        if isinstance(self.scale, Real) and float(self.scale) == 1.0:
            raise ValueError("scale is 1, but PerpNeg needs another, as its null rows have none")
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        negative = Branch("negative", projection=Perpendicular())
        amount = _Product(self.scale, self.weight)
        return (
            Term(Branch("null"), self.scale, 1.0, "scale", self.schedule),
            Term(negative, amount, 0.0, "scale times weight", self.schedule),
        )
