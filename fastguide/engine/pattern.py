"""Which branches are active at each evaluation, and with which weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastguide.guidance.base import POSITIVE, Branch, Guidance
from fastguide.perturbation import Layers
from fastguide.process import Level


@dataclass(frozen=True)
class Nag:
    """NAG in the attention of `layers`, for rows under "cond" against those under "negative"."""

    layers: tuple[str, ...]
    tau: float
    alpha: float


@dataclass(frozen=True)
class Pattern:
    """The branches that are active at an evaluation, the positive one first."""

    branches: tuple[Branch, ...]
    nag: Nag | None = None

    @property
    def passes(self) -> tuple[tuple[Branch, ...], ...]:
        """The rows of each pass: one block of B rows each. The first pass, then one for each
        degraded input.
        """
        first = [b.source if b.degraded else b.rows for b in self.branches]
        degraded = dict.fromkeys(b.rows for b in self.branches if b.degraded)
        others: list[tuple[Branch, ...]] = [(rows,) for rows in degraded]
        if self.nag is not None:
            first.append(Branch("negative"))
            others = [
                (*rows, replace(rows[0], cond="negative")) if rows[0].cond == "cond" else rows
                for rows in others
            ]
        return (tuple(dict.fromkeys(first)), *others)

    @property
    def net_rows(self) -> int:
        """Blocks of rows in all passes."""
        return sum(len(rows) for rows in self.passes)


def no_layers(layers: Layers) -> tuple[str, ...]:
    """What a network without stages answers to the layers of a perturbation."""
    raise ValueError(
        f"guidance perturbs the layers {list(layers)}, but the network has no stages, so that its "
        "layers cannot be reached (fastguide.staged says what a network needs)"
    )


def make_patterns(
    guidance: Guidance | None,
    levels: list[Level],
    needed: list[bool],
    choose: Callable[[Layers], tuple[str, ...]],
) -> tuple[list[Pattern], list[Tensor], Tensor, int | None]:
    """Per evaluation: the pattern, the weights of its branches fp64 `[B or 1, K]`, and NAG's scale
    fp64 `[E, B or 1]`; then the batch that the guidance holds values for. Where `needed`, the first
    unperturbed branch beside the positive one is active whatever its weight.
    """
    terms = guidance.terms() if guidance is not None else ()
    inside = [one.term for one in guidance.inside()] if guidance is not None else []
    batches = {term.batch for term in (*terms, *inside) if term.batch is not None}
    if len(batches) > 1:
        raise ValueError(f"guidance holds per-sample values for batches of {sorted(batches)}")
    batch = batches.pop() if batches else None
    totals: dict[Branch, Tensor] = {}
    for term in terms:
        branch = _chosen(term.branch, choose)
        weights = term.weights(levels).expand(len(levels), batch or 1)
        if branch.degraded:  # where alpha is 0, x holds nothing of the image that could be degraded
            weights = weights * torch.tensor([[float(at.alpha > 0)] for at in levels])
        totals[branch] = totals.get(branch, 0.0) + weights
    plain = {branch: w for branch, w in totals.items() if branch.rows == branch.source}
    totals = {**plain, **totals}
    nags, nag_scales = _nags(guidance, levels, batch, choose)
    patterns, packed = [], []
    for e in range(len(levels)):
        on = {
            branch: w[e]
            for i, (branch, w) in enumerate(totals.items())
            if bool(w[e].any()) or (i == 0 and needed[e] and branch in plain)
        }
        patterns.append(Pattern((POSITIVE, *on), nags[e]))
        ones = torch.ones(batch or 1, dtype=torch.float64)
        packed.append(torch.stack([ones, *on.values()], dim=1))
    return patterns, packed, nag_scales, batch


def _chosen(branch: Branch, choose: Callable[[Layers], tuple[str, ...]]) -> Branch:
    """The branch with its layers by name."""
    if branch.layers:
        branch = replace(branch, layers=choose(branch.layers))
    if branch.degraded and branch.degraded.layers:
        names = choose(branch.degraded.layers)
        if len(names) != 1:
            raise ValueError(
                f"layers selects {', '.join(names)}, but the mask is made from one layer"
            )
        branch = replace(branch, degraded=replace(branch.degraded, layers=names))
    return branch


def _nags(
    guidance: Guidance | None,
    levels: list[Level],
    batch: int | None,
    choose: Callable[[Layers], tuple[str, ...]],
) -> tuple[list[Nag | None], Tensor]:
    """Per evaluation: NAG or None, and its scale fp64 `[E, B or 1]`."""
    inside = guidance.inside() if guidance is not None else ()
    if len(inside) > 1:
        raise ValueError(f"guidance holds {len(inside)} NAGs, but a network can hold one")
    if not inside:
        return [None] * len(levels), torch.ones(len(levels), 1).double()
    one = inside[0]
    nag = Nag(choose(one.layers), one.tau, one.alpha)
    weights = one.term.weights(levels).expand(len(levels), batch or 1)
    return [nag if bool(w.any()) else None for w in weights], 1.0 + weights
