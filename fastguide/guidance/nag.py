"""Normalized attention guidance: inside the attention layers, not on the prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastguide.common.checks import check_name, check_number
from fastguide.guidance.base import Amount, Branch, Factor, Guidance, Inside, Term
from fastguide.staging.perturbation import LayerNames, as_layers


@dataclass(frozen=True, eq=False)
class NAG(Guidance):
    """Normalized attention guidance (Chen et al. 2025), one negative row a sample.

    With z_+ and z_- the attention outputs (before the output projection) of the positive and the
    negative rows: `z = scale z_+ - (scale - 1) z_-`, its L1 norm per token held to `tau` times that
    of z_+, and `alpha z + (1 - alpha) z_+` takes the place of z_+. Both conditions run as rows of
    their own. Works without a further pass for the negative condition where CFG runs that anyway.

    Args:
        scale: 1 is off. Published: 5 with tau 2.5 and alpha 0.25.
        queries: "own": z_- is what the negative rows get, in whatever attention, so that it works
            for networks that are told their condition by any means. "shared", as published: z_- is
            what the POSITIVE image's queries get, from the negative text's keys and values in
            attention to the text; in joint attention from those and the positive image's own. For
            networks that run by their modules, blocks as layers.
    """

    scale: Amount = 5.0
    tau: float = 2.5
    alpha: float = 0.25
    layers: LayerNames = "all"
    schedule: Factor = None
    queries: Literal["own", "shared"] = "own"

    def __post_init__(self) -> None:
        check_number("tau", self.tau, 1.0)
        check_name("queries", self.queries, ("own", "shared"))
        check_number("alpha", self.alpha)
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha is {self.alpha}, but it should lie in (0, 1]")
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        return ()

    def inside(self) -> tuple[Inside, ...]:
        term = Term(Branch("negative"), self.scale, 1.0, "scale", self.schedule)
        shared = self.queries == "shared"
        return (Inside(term, self.tau, self.alpha, as_layers(self.layers), shared),)
