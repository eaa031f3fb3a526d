"""Which branches are active at each evaluation, and with which weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from fastguide.common.hashing import hash_once
from fastguide.engine.age import Age
from fastguide.engine.order import is_negative, negatives, ordered
from fastguide.guidance.base import POSITIVE, Branch, Guidance
from fastguide.guidance.modifiers import Norm, Rectified
from fastguide.guidance.schedule import values_of
from fastguide.process import Level
from fastguide.spacing import Levels
from fastguide.staging.contract import TIME
from fastguide.staging.perturbation import Layers, NoisyTime

MOVED = Branch(moved=True)


@dataclass(frozen=True)
class Nag:
    """NAG in the attention of `layers`, for rows under "cond" against those under "negative"."""

    layers: tuple[str, ...]
    tau: float
    alpha: float
    shared: bool = False


@hash_once
@dataclass(frozen=True)
class Pattern:
    """The branches that are active at an evaluation, the positive one first.

    Args:
        held: those whose delta is that of an earlier evaluation.
        refreshed: whether REG's factor is computed at this evaluation.
    """

    branches: tuple[Branch, ...]
    nag: Nag | None = None
    held: frozenset[Branch] = frozenset()
    refreshed: bool = False

    @cached_property
    def computed(self) -> tuple[Branch, ...]:
        """The branches whose delta is computed at this evaluation, from a prediction."""
        return tuple(b for b in self.branches if b not in self.held and b.potential is None)

    @cached_property
    def rectified(self) -> Rectified | None:
        """The settings of REG, where a branch has it."""
        return next((b.rectified for b in self.branches if b.rectified is not None), None)

    @cached_property
    def graph(self) -> bool:
        """Whether something is differentiated through the positive rows."""
        how = self.rectified
        by_factor = how is not None and how.mode == "vjp" and self.refreshed
        by_chain = how is not None and how.mode == "chain"
        by_potential = any(
            b.potential is not None and b.potential.of == "denoised" and b not in self.held
            for b in self.branches
        )
        return by_factor or by_chain or by_potential

    @cached_property
    def projects(self) -> bool:
        """Whether weights depend on inner products."""
        return any(b.projection is not None or b.rescales for b in self.branches)

    @cached_property
    def plain(self) -> bool:
        """Whether each delta is the difference of two predictions, with the plan's weight."""
        bare = (
            Branch(
                cond=b.cond,
                head=b.head,
                how=b.how,
                layers=b.layers,
                degraded=b.degraded,
                moved=b.moved,
                net=b.net,
            )
            for b in self.branches
        )
        return Pattern(tuple(bare), self.nag) == self

    @cached_property
    def norm(self) -> Norm | None:
        """What the guided prediction is held to, where a branch has it."""
        return next((b.norm for b in self.branches if b.norm is not None), None)

    @property
    def rewrites(self) -> bool:
        """Whether the weights of an evaluation are not the plan's."""
        return self.projects or self.norm is not None

    @cached_property
    def settled(self) -> Pattern:
        """The pattern once adaptive guidance is off for all samples."""
        kept = tuple(b for b in self.branches if b.projection is None or not b.projection.latches)
        rectified = any(b.rectified is not None for b in kept)
        held = self.held & frozenset(kept)
        return replace(self, branches=kept, held=held, refreshed=self.refreshed and rectified)

    @property
    def passes(self) -> tuple[tuple[Branch, ...], ...]:
        """The rows of each pass: one block of B rows each. The first pass, then one for each other
        network and for each degraded input.
        """
        computed = self.computed
        first = [b.source if b.degraded else b.rows for b in computed if b.net is None]
        if self.rectified is not None and self.rectified.mode == "difference" and self.refreshed:
            first.append(MOVED)
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
        """Blocks of rows in all passes, backward passes not counted."""
        return sum(len(rows) for rows in self.passes)


def no_layers(layers: Layers, why: str | None = None) -> tuple[str, ...]:
    """What a network without stages answers to the layers of a perturbation; `why` it has none."""
    why = why or (
        "the network has no stages, or was compiled as one piece, so that its layers cannot be "
        "reached (fastguide.staging.contract says what a network needs)"
    )
    raise ValueError(f"guidance perturbs the layers {list(layers)}, but {why}")


def make_patterns(
    guidance: Guidance | None,
    levels: list[Level],
    needed: list[bool],
    choose: Callable[[Layers], tuple[str, ...]],
    run: Levels,
) -> tuple[list[Pattern], list[Tensor], Tensor, int | None]:
    """Per evaluation: the pattern, the weights of x and of its branches fp64 `[B or 1, 1 + K]`, and
    NAG's scale fp64 `[E, B or 1]`; then the batch that the guidance holds values for. Where
    `needed`, the negative branch comes first beside the positive one, whatever its weight.

    Args:
        levels: of the evaluations.
        run: the levels that the steps lead to.

    Raises:
        ValueError: a negative branch is needed, but there is none; a schedule that is not finite;
            values of different batches; deltas that would be held at other evaluations for one
            sample than for another.
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
        if branch.degraded or branch.potential:  # where alpha is 0, x holds nothing of an image
            weights = weights * torch.tensor(
                [[float(at.alpha > 0)] for at in levels], dtype=torch.float64, device="cpu"
            )
        totals[branch] = totals.get(branch, 0.0) + weights
    if any(needed) and guidance is not None:
        totals = {**negatives(totals), **totals}
    totals = ordered(totals, any(needed))
    _check_norms(totals, any(needed))
    within = _within(totals, levels)
    zero_steps = max([0, *(b.projection.zero_steps for b in totals if b.projection is not None)])
    ages = {branch: Age(branch.every, batch or 1) for branch in totals}
    hows = [branch.rectified for branch in totals if branch.rectified is not None]
    factor_age = Age(hows[0].every if hows else 1, batch or 1)
    nags, nag_scales = _nags(guidance, levels, batch, choose)
    zeroed = _zeroed(levels, run, zero_steps)
    patterns, packed = [], []
    ones = torch.ones(batch or 1, dtype=torch.float64, device="cpu")
    for e in range(len(levels)):
        if zeroed[e]:
            if needed[e]:
                raise ValueError(
                    f"zero_steps is {zero_steps}, but it should be 0 for a solver that reads the "
                    "negative's image (CFG++), which it does not set to 0"
                )
            patterns.append(Pattern((POSITIVE,)))
            packed.append(torch.stack([ones, 0.0 * ones], dim=1))
            continue
        on: dict[Branch, Tensor] = {}
        held = set()
        rectifies = torch.zeros_like(ones, dtype=torch.bool)
        for i, (branch, w) in enumerate(totals.items()):
            active = w[e] != 0.0
            if i == 0 and needed[e] and is_negative(branch):
                active = torch.ones_like(active)
            computed = ages[branch].next(active, levels[e])
            if computed is None:
                continue
            now = branch if within[e] else replace(branch, rectified=None)
            on[now] = on.get(now, 0.0) + w[e]
            if not computed:
                held.add(now)
            if now.rectified is not None:
                rectifies = rectifies | active
        refreshed = bool(factor_age.next(rectifies, levels[e]))
        patterns.append(Pattern((POSITIVE, *on), nags[e], frozenset(held), refreshed))
        packed.append(torch.stack([ones, ones, *on.values()], dim=1))
    return patterns, packed, nag_scales, batch


def _check_norms(totals: dict[Branch, Tensor], needed: bool) -> None:
    norms = {branch.norm for branch in totals if branch.norm is not None}
    if len(norms) > 1:
        raise ValueError(f"guidance holds {len(norms)} CFGNorms, but it should be one: of a sum")
    if norms and needed:
        raise ValueError(
            "guidance holds a CFGNorm, but the solver reads the negative's image (CFG++)"
        )
    beside = [b for b in totals if b.norm is None and (b.projection is not None or b.rescales)]
    if norms and beside:
        raise ValueError(
            "guidance holds a projection or rescale beside a CFGNorm, but it should be within"
        )


def _zeroed(levels: list[Level], run: Levels, steps: int) -> list[bool]:
    """Whether each evaluation is one of the first `steps` steps, counted from the noisiest level.
    Of two evaluations at the level between two steps one belongs to each.
    """
    if steps == 0:
        return [False] * len(levels)
    points = sorted(run.points, key=lambda point: point.ratio, reverse=True)
    end = points[min(steps, len(points) - 1)].ratio
    again = [one.ratio == other.ratio for one, other in pairwise(levels)] + [False]
    return [
        at.ratio > end or (at.ratio == end and follows != run.rising)
        for at, follows in zip(levels, again, strict=True)
    ]


def _within(totals: dict[Branch, Tensor], levels: list[Level]) -> list[bool]:
    """Per evaluation, whether REG is on."""
    hows = {branch.rectified for branch in totals if branch.rectified is not None}
    if len(hows) > 1:
        raise ValueError(
            f"guidance holds REG with {len(hows)} different settings, but its factor is one: "
            "REG(a + b)"
        )
    schedule = hows.pop().within if hows else None
    if schedule is None:
        return [True] * len(levels)
    return [value != 0.0 for value in values_of(schedule, levels)]


def _chosen(branch: Branch, choose: Callable[[Layers], tuple[str, ...]]) -> Branch:
    """The branch with its layers by name."""
    if branch.layers:
        branch = replace(branch, layers=choose(branch.layers))
        if TIME in branch.layers and not isinstance(branch.how, NoisyTime):
            raise ValueError(f"layers has {TIME!r}, but only TSG perturbs the time embedding")
    if branch.degraded and branch.degraded.layers:
        names = choose(branch.degraded.layers)
        if branch.degraded.layers == ("mid",):
            names = names[:1]  # the published layer, where the middle of a network has several
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
        return [None] * len(levels), torch.ones(len(levels), 1, dtype=torch.float64, device="cpu")
    one = inside[0]
    nag = Nag(choose(one.layers), one.tau, one.alpha, one.shared)
    weights = one.term.weights(levels).expand(len(levels), batch or 1)
    return [nag if bool(w.any()) else None for w in weights], 1.0 + weights
