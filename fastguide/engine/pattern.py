"""Which branches are active at each evaluation, and with which weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastguide.guidance.base import POSITIVE, Branch, Guidance
from fastguide.perturbation import Layers, NoisyTime
from fastguide.process import Level
from fastguide.staged import TIME


@dataclass(frozen=True)
class Nag:
    """NAG in the attention of `layers`, for rows under "cond" against those under "negative"."""

    layers: tuple[str, ...]
    tau: float
    alpha: float


@dataclass(frozen=True)
class Pattern:
    """The branches that are active at an evaluation, the positive one first; `held` are those whose
    delta is that of an earlier evaluation.
    """

    branches: tuple[Branch, ...]
    nag: Nag | None = None
    held: frozenset[Branch] = frozenset()

    @property
    def passes(self) -> tuple[tuple[Branch, ...], ...]:
        """The rows of each pass: one block of B rows each. The first pass, then one for each other
        network and for each degraded input.
        """
        computed = [branch for branch in self.branches if branch not in self.held]
        first = [b.source if b.degraded else b.rows for b in computed if b.net is None]
        degraded = dict.fromkeys(b.rows for b in computed if b.degraded)
        others: list[tuple[Branch, ...]] = [(rows,) for rows in degraded]
        if self.nag is not None:
            first.append(Branch("negative"))
            others = [
                (*rows, replace(rows[0], cond="negative")) if rows[0].cond == "cond" else rows
                for rows in others
            ]
        others += [(rows,) for rows in dict.fromkeys(b.rows for b in computed if b.net)]
        return (tuple(dict.fromkeys(first)), *others)

    @property
    def net_rows(self) -> int:
        """Blocks of rows in all passes."""
        return sum(len(rows) for rows in self.passes)


def no_layers(layers: Layers) -> tuple[str, ...]:
    """What a network without stages answers to the layers of a perturbation."""
    raise ValueError(
        f"guidance perturbs the layers {list(layers)}, but the network has no stages, or was "
        "compiled as one piece, so that its layers cannot be reached (fastguide.staged says what a "
        "network needs)"
    )


def make_patterns(
    guidance: Guidance | None,
    levels: list[Level],
    needed: list[bool],
    choose: Callable[[Layers], tuple[str, ...]],
) -> tuple[list[Pattern], list[Tensor], Tensor, int | None]:
    """Per evaluation: the pattern, the weights of x and its branches fp64 `[B or 1, 1 + K]`, and NAG's scale
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
    plain = {branch: w for branch, w in totals.items() if _is_plain(branch)}
    totals = {**plain, **totals}
    age = dict.fromkeys(totals, 0)  # evaluations since the branch became active
    nags, nag_scales = _nags(guidance, levels, batch, choose)
    patterns, packed = [], []
    for e in range(len(levels)):
        on = {
            branch: w[e]
            for i, (branch, w) in enumerate(totals.items())
            if bool(w[e].any()) or (i == 0 and needed[e] and branch in plain)
        }
        held = frozenset(branch for branch in on if age[branch] % branch.every)
        age = {branch: age[branch] + 1 if branch in on else 0 for branch in totals}
        patterns.append(Pattern((POSITIVE, *on), nags[e], held))
        ones = torch.ones(batch or 1, dtype=torch.float64)
        packed.append(torch.stack([ones, ones, *on.values()], dim=1))
    return patterns, packed, nag_scales, batch


def _is_plain(branch: Branch) -> bool:
    """Whether it is a clean prediction of the network itself."""
    return branch.rows == branch.source


def _chosen(branch: Branch, choose: Callable[[Layers], tuple[str, ...]]) -> Branch:
    """The branch with its layers by name."""
    if branch.layers:
        branch = replace(branch, layers=choose(branch.layers))
        if TIME in branch.layers and not isinstance(branch.how, NoisyTime):
            raise ValueError(f"layers has {TIME!r}, but only TSG perturbs the time embedding")
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
