"""The order of a pattern's branches: which comes first, as `ops.step` reads the first as the
negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastguide.guidance.base import Branch


def negatives(totals: dict[Branch, Tensor]) -> dict[Branch, Tensor]:
    """The negative branches as they are; where there are only deltas that are made from one, that
    of the first of them, with weight 0.
    """
    plain = {branch: w for branch, w in totals.items() if is_negative(branch)}
    if plain:
        return plain
    for branch, w in totals.items():
        if is_negative(branch.delta):
            return {branch.delta: torch.zeros_like(w)}
    raise ValueError(
        "guidance has no negative branch, but the solver reads the negative's image (CFG++): it "
        "should hold CFG, FDG or Superconditioning, such as CFG(0.6)"
    )


def ordered(totals: dict[Branch, Tensor], needed: bool) -> dict[Branch, Tensor]:
    """The clean predictions of the network itself first, where they are `needed` the negative ones
    before all. What moves the noise comes last.
    """
    last = {b: w for b, w in totals.items() if b.potential is not None and b.potential.mean}
    first = {branch: w for branch, w in totals.items() if needed and is_negative(branch)}
    plain = {branch: w for branch, w in totals.items() if is_plain(branch)}
    others = {branch: w for branch, w in totals.items() if branch not in last}
    return {**first, **plain, **others, **last}


def is_plain(branch: Branch) -> bool:
    """Whether it is made from a clean prediction of the network itself, as it is."""
    return branch.rows == branch.source and not branch.derived


def is_negative(branch: Branch) -> bool:
    """Whether it is the network's own prediction without what the positive one is led to: under the
    negative condition, or of a second head.
    """
    return is_plain(branch) and (branch.cond == "negative" or branch.head > 0)
