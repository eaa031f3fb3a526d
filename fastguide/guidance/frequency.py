"""Frequency-decoupled guidance: one scale for coarse structure, another for detail."""

from __future__ import annotations

from dataclasses import dataclass

from fastguide.guidance.base import Amount, Branch, Factor, Guidance, Term
from fastguide.guidance.modifiers import HighPass


@dataclass(frozen=True, eq=False)
class FDG(Guidance):
    """Frequency-decoupled guidance (Sadat et al. 2025): CFG with the scale `low` for the coarse
    part of the delta and `high` for the fine one, split by a Laplacian pyramid.

    The coarse part is the delta at half its resolution, brought back to its size, `levels` times.
    As the split is linear it is `d_u + low delta + (high - low) fine(delta)`, one filtered image.
    Published for SDXL: low 5, high 10.

    Args:
        low, high: 1 is off. Numbers, schedules of scales, or one scale per sample `[B]`.
        levels: how often the resolution is halved for the coarse part.
    """

    low: Amount
    high: Amount
    levels: int = 1
    schedule: Factor = None
    every: int = 1

    def terms(self) -> tuple[Term, ...]:
        branch = Branch("negative", every=self.every)
        fine = Branch("negative", every=self.every, high_pass=HighPass(self.levels))
        return (
            Term(branch, self.low, 1.0, "low", self.schedule),
            Term(fine, self.high, 1.0, "high", self.schedule),
            Term(fine, self.low, 1.0, "low", self.schedule, sign=-1.0),
        )
