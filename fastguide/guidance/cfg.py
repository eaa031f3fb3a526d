"""Classifier-free guidance, in two passes or in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastguide.guidance.base import Amount, Branch, Factor, Guidance, Term, as_channels


@dataclass(frozen=True, eq=False)
class CFG(Guidance):
    """Classifier-free guidance `d_u + scale (d_c - d_u)` (Ho and Salimans 2022), two rows a sample.

    d_u is under the negative condition where the call gives one, else under the null condition.

    Args:
        scale: 1 is off. A number, a schedule of scales, or one scale per sample `[B]`.
        schedule: factor on `scale - 1`, e.g. `interval(0.3, 2.9)`; at 0 the second row is not run.
        every: the delta is computed at each `every`-th evaluation and held between.
        channels: which channels are guided, all by default: `range(3)` of four in DiT's and REG's
            published numbers.
    """

    scale: Amount
    schedule: Factor = None
    every: int = 1
    channels: Sequence[int] = ()

    def terms(self) -> tuple[Term, ...]:
        branch = Branch("negative", every=self.every, channels=as_channels(self.channels))
        return (Term(branch, self.scale, 1.0, "scale", self.schedule),)


@dataclass(frozen=True, eq=False)
class Superconditioning(Guidance):
    """CFG from ONE pass of a network whose second head predicts without the condition, or under the
    negative one (madebyollin, "Single-pass Superconditioning", 2025). Arguments as for CFG.
    """

    scale: Amount
    schedule: Factor = None
    every: int = 1

    def terms(self) -> tuple[Term, ...]:
        branch = Branch("cond", head=1, every=self.every)
        return (Term(branch, self.scale, 1.0, "scale", self.schedule),)
