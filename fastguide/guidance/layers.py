"""Guidance away from a copy of the network whose layers are perturbed: PAG, SEG, SLG, STG, TPG.

All are `d + weight (d - d_perturbed)`, weight 0 is off. `layers` is a name, an index, "mid", "all",
or a list of names and indices (`fastguide info MODEL` lists them). `of="negative"` perturbs the
negative rows instead: `weight (d_negative - d_perturbed)` is then added. With `every=k` the delta
is computed at each k-th evaluation and held between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fastguide.common.checks import check_name
from fastguide.guidance.base import Amount, Branch, Condition, Factor, Guidance, Instead, Term
from fastguide.staging.perturbation import (
    BlurredQueries,
    Identity,
    LayerNames,
    Perturbation,
    Shuffled,
    Skipped,
    as_layers,
)


def terms_of(branch: Branch, weight: Amount, schedule: Factor) -> tuple[Term, ...]:
    """`weight (p_source - p_branch)`: one term where the source is the positive branch, else two,
    as (p_0 - p_branch) - (p_0 - p_source).

    Raises:
        ValueError: the condition, which the user calls `of`, is another.
    """
    check_name("of", branch.cond, ("cond", "negative"))
    terms = (Term(branch, weight, 0.0, "weight", schedule),)
    if branch.cond == "cond":
        return terms
    source = replace(branch.source, every=branch.every)
    return (*terms, Term(source, weight, 0.0, "weight", schedule, sign=-1.0))


@dataclass(frozen=True, eq=False)
class _Layered(Guidance):
    """What the classes below share: the perturbation is all that differs."""

    weight: Amount
    layers: LayerNames = "mid"
    schedule: Factor = None
    of: Condition = "cond"
    every: int = 1

    def perturbation(self) -> Perturbation:
        """What is done to the layers."""
        raise NotImplementedError

    def terms(self) -> tuple[Term, ...]:
        branch = Branch(
            self.of, how=self.perturbation(), layers=as_layers(self.layers), every=self.every
        )
        return terms_of(branch, self.weight, self.schedule)


@dataclass(frozen=True, eq=False)
class PAG(_Layered):
    """Perturbed-attention guidance (Ahn et al. 2024): the self-attention maps of `layers` become
    the identity. Published: weight 3, the middle of a U-Net; 4 in their ADM code's `guide_scale`,
    which counts from 1. No condition is needed.
    """

    def perturbation(self) -> Perturbation:
        return Identity()


@dataclass(frozen=True, eq=False)
class SEG(_Layered):
    """Smoothed energy guidance (Hong 2024): the queries of `layers` are blurred on their grid with
    `sigma` in tokens, by default inf: their mean. Published: weight 3. No condition is needed.

    Of tokens on several axes `sigma` may be one for each, inf among them: (frames, height, width)
    of a video, as in `SEG(3.0, sigma=(0.0, inf, inf))`, which blurs each frame by itself.
    """

    sigma: float | Sequence[float] = math.inf

    def perturbation(self) -> Perturbation:
        given = self.sigma
        return BlurredQueries(tuple(given) if isinstance(given, (list, tuple)) else given)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class SLG(_Layered):
    """Skip-layer guidance (Stable Diffusion 3.5): `layers` are left out, residual connection and
    all. Published: weight 2.5 on blocks 7, 8, 9 of 24, from 1 % to 20 % of the run.

    With `on="negative"` they are left out in the negative rows of the guidance beside it, without
    a further pass: `d_skipped + s (d - d_skipped)` in `CFG(s) + SLG(layers=10, on="negative")`, as
    it is usual for Wan; then there is no weight.
    """

    weight: Amount | None = None  # type: ignore[assignment]
    on: Literal["copy", "negative"] = "copy"

    def __post_init__(self) -> None:
        check_name("on", self.on, ("copy", "negative"))
        if (self.weight is None) != (self.on == "negative"):
            needs = "no weight" if self.on == "negative" else "a weight"
            raise ValueError(f"weight is {self.weight} with on={self.on!r}, which needs {needs}")
        if self.on == "negative" and (self.of != "cond" or self.every != 1):
            raise ValueError(
                f"of, every are {self.of!r}, {self.every} with on='negative', which are those of "
                "the guidance beside it"
            )
        super().__post_init__()

    def perturbation(self) -> Perturbation:
        return Skipped()

    def terms(self) -> tuple[Term, ...]:
        return () if self.on == "negative" else super().terms()

    def instead(self) -> tuple[Instead, ...]:
        if self.on == "copy":
            return ()
        return (Instead(Skipped(), as_layers(self.layers), self.schedule),)


@dataclass(frozen=True, eq=False)
class STG(_Layered):
    """Spatiotemporal skip guidance (Hyung et al. 2024): `mode="residual"` leaves `layers` out (as
    SLG does), `mode="attention"` their attention map only (as PAG does). Published: weight 1.
    """

    mode: Literal["residual", "attention"] = "residual"

    def perturbation(self) -> Perturbation:
        check_name("mode", self.mode, ("residual", "attention"))
        return Skipped() if self.mode == "residual" else Identity()


@dataclass(frozen=True, eq=False)
class TPG(_Layered):
    """Token perturbation guidance (Rajabi et al. 2025): the input tokens of `layers` are permuted,
    anew at each evaluation, by the sample's own seed. Published: weight 3. No condition is needed.
    """

    def perturbation(self) -> Perturbation:
        return Shuffled()
