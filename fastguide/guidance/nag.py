"""Normalized attention guidance: inside the attention layers, not on the prediction."""

from __future__ import annotations

from dataclasses import dataclass

from fastguide.common.checks import check_number
from fastguide.guidance.base import Amount, Branch, Factor, Guidance, Inside, Term
from fastguide.staging.perturbation import LayerNames, as_layers


@dataclass(frozen=True, eq=False)
class NAG(Guidance):
    """Normalized attention guidance (Chen et al. 2025), one negative row a sample.

    With z_+ and z_- the attention outputs (before the output projection) of the positive and the
    negative rows: `z = scale z_+ - (scale - 1) z_-`, its L1 norm per token held to `tau` times that
    of z_+, and `alpha z + (1 - alpha) z_+` takes the place of z_+. Here both conditions run as rows
    of their own, so it works for networks that are told their condition by any means. Works without
    a further pass for the negative condition where CFG runs that anyway.

    Args:
        scale: 1 is off. Published: 5 with tau 2.5 and alpha 0.25.
    """

    scale: Amount = 5.0
    tau: float = 2.5
    alpha: float = 0.25
    layers: LayerNames = "all"
    schedule: Factor = None

    def __post_init__(self) -> None:
        check_number("tau", self.tau, 1.0)
        check_number("alpha", self.alpha)
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha is {self.alpha}, but it should lie in (0, 1]")
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        return ()

    def inside(self) -> tuple[Inside, ...]:
        term = Term(Branch("negative"), self.scale, 1.0, "scale", self.schedule)
        return (Inside(term, self.tau, self.alpha, as_layers(self.layers)),)
