"""One evaluation: the deltas of its pattern, from predictions and gradients, and their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastguide import ops
from fastguide.engine.filters import high_pass
from fastguide.engine.gradient import Graph, potential_gradient
from fastguide.engine.latch import Latches
from fastguide.engine.norm import combined, held_to
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import At, Fact, Row
from fastguide.engine.predict import Predict
from fastguide.engine.project import Products, projected_weights
from fastguide.guidance.base import POSITIVE, Branch
from fastguide.guidance.modifiers import Rectified
from fastguide.guidance.potential import Potential
from fastguide.ops.table import Column

VARIANCE = Branch("cond", head=1)  # the second part of the output, whatever it means


@dataclass(frozen=True)
class Combination:
    """What one evaluation gives to `ops.step`: its arguments of these names; the `shift` of the
    mean of the update's noise, in units of its variance; and `after`, what is added to the denoised
    image when it has been clamped.
    """

    branches: list[Tensor]
    weights: Tensor | None = None
    deltas: int = 0
    factor: Tensor | None = None
    factored: int = 0
    variance: Tensor | None = None
    shift: Tensor | None = None
    after: Tensor | None = None


EMPTY = Combination([])

Kept = dict[tuple[str, Branch, str], Tensor]  # what, of which branch, called what


class Evaluate:
    """The evaluations of one run, in order: `evaluate(at, pattern, x, state)`.

    Args:
        predict: the passes of the run.
        kept: what earlier evaluations left, of another object's `kept`; what is absent counts as
            zeros.
    """

    def __init__(self, predict: Predict, kept: Kept | None = None) -> None:
        self.plan, self.predict = predict.plan, predict
        self.deltas: dict[Branch, Tensor] = {}  # what is held
        self.momenta: dict[Branch, Tensor] = {}
        self.memory: dict[Branch, dict[str, Tensor]] = {}
        self.latches = Latches()
        plan = self.plan
        self.weights = plan.weights
        if kept is not None:
            self._restore(kept)
            return
        if plan.rewrites:
            copies = plan.weights.expand(-1, predict.seeds.shape[0], -1)
            self.weights = copies.clone(memory_format=torch.contiguous_format)
        self.bad_gradient = torch.full_like(predict.seeds, len(plan.rows))

    @property
    def kept(self) -> Kept:
        """All that evaluations leave to later ones and to the run."""
        found: Kept = {("bad_gradient", POSITIVE, ""): self.bad_gradient}
        if self.plan.rewrites:
            found["weights", POSITIVE, ""] = self.weights
        if self.predict.factor is not None:
            found["factor", POSITIVE, ""] = self.predict.factor
        found |= {("delta", branch, ""): delta for branch, delta in self.deltas.items()}
        found |= {("momentum", branch, ""): now for branch, now in self.momenta.items()}
        for branch, memory in self.memory.items():
            found |= {("memory", branch, name): tensor for name, tensor in memory.items()}
        return found

    def _restore(self, kept: Kept) -> None:
        """Go on from what was `kept`."""
        self.bad_gradient = kept["bad_gradient", POSITIVE, ""]
        self.weights = kept.get(("weights", POSITIVE, ""), self.plan.weights)
        self.predict.factor = kept.get(("factor", POSITIVE, ""))
        for (what, branch, name), tensor in kept.items():
            if what == "delta":
                self.deltas[branch] = tensor
            elif what == "momentum":
                self.momenta[branch] = tensor
            elif what == "memory":
                self.memory.setdefault(branch, {})[name] = tensor

    def pattern(self, row: Row) -> Pattern | None:
        """The pattern of the plan's row, less what adaptive guidance has ended by now."""
        return self.latches.pattern(row)

    def __call__(self, at: At, pattern: Pattern, x: Tensor, state: Tensor) -> Combination:
        """The deltas of all branches, and what combines them.

        Args:
            at: the plan's row.
            x: the network's input, `[inputs B, *shape]`.
            state: x in fp32 and unscaled, `[B, *shape]`.

        Raises:
            ValueError: a network or a potential returns what it should not.
        """
        facts, row = at.facts, at.table
        graph = Graph(facts, row, state.shape[1]) if pattern.graph else None
        parts = self.predict(at, pattern, x, state, graph)
        if pattern.plain and pattern is at.row.pattern:
            branches = [parts[branch] for branch in pattern.branches]
            return Combination(branches, self.weights, variance=parts.get(VARIANCE))
        weights = _planned(at, pattern)
        positive = parts[POSITIVE]
        branches = [positive]
        deltas, factored, shift, after = 0, 0, None, None
        outside = 0  # of the norm
        for k, branch in enumerate(pattern.branches[1:], 1):
            weight = weights[:, 1 + k].view(-1, *[1] * (state.ndim - 1))
            tensor, given = self._delta(at, pattern, branch, weight, parts, x, state, graph)
            if branch.potential is not None and branch.potential.mean:
                shift = weight * tensor if shift is None else shift + weight * tensor
                continue
            if branch.channels:
                tensor = _only(branch.channels, _delta(positive, tensor, given))
                given = True
            if branch.high_pass is not None:
                fine = high_pass(_delta(positive, tensor, given), branch.high_pass.levels)
                tensor, given = fine, True
            how = branch.rectified
            if how is not None and how.mode == "chain":
                assert graph is not None
                chained = graph.product(_delta(positive, tensor, given))
                tensor, given = facts[Fact.ALPHA] * chained, True
                how = None
            if branch.projection is not None and branch.projection.momentum != 0.0:
                delta = _delta(positive, tensor, given)
                tensor = self._moving(branch, row, weight, delta, how)
                given, how = True, None
            if at.row.after and branch.leads:
                if how is not None:
                    assert self.predict.factor is not None
                    tensor = self.predict.factor * tensor
                moved = weight * row[Column.OF_PREDICTION] * tensor
                after = moved if after is None else after + moved
                continue
            outside |= (branch.norm is None) << len(branches)
            deltas |= given << len(branches)
            factored |= (how is not None) << len(branches)
            branches.append(tensor)
        if graph is not None:
            graph.release()
        factor = self.predict.factor if factored else None
        used = self._weigh(at, pattern, weights, branches, deltas, factor, factored, state)
        variance = parts.get(VARIANCE)
        settings = (deltas, factor, factored, variance)
        if pattern.norm is None:
            return Combination(branches, self.weights, *settings, shift, after)
        base = at.table[Column.OF_X] / at.table[Column.OF_PREDICTION]
        sums = combined(branches, used, deltas, factor, factored, outside, base * state)
        guided = held_to(pattern.norm, positive, *sums)
        self._write(at, torch.ones_like(used[:, :2]))
        return Combination([guided], self.weights, 0, None, 0, variance, shift, after)

    def _delta(
        self,
        at: At,
        pattern: Pattern,
        branch: Branch,
        weight: Tensor,
        parts: dict[Branch, Tensor],
        x: Tensor,
        state: Tensor,
        graph: Graph | None,
    ) -> tuple[Tensor, bool]:
        """What the delta is made from, and whether it is the delta itself."""
        if branch in pattern.held:
            return self.deltas[branch.delta], True
        if branch.potential is not None:
            positive = parts[POSITIVE]
            delta = self._gradient(at, branch.potential, weight, x, state, positive, graph)
            if branch.every > 1:
                self.deltas[branch.delta] = delta
            return delta, True
        found = parts[branch.prediction]
        if branch.every > 1:
            self.deltas[branch.delta] = parts[POSITIVE] - found
        return found, False

    def _gradient(
        self,
        at: At,
        potential: Potential,
        weight: Tensor,
        x: Tensor,
        state: Tensor,
        prediction: Tensor,
        graph: Graph | None,
    ) -> Tensor:
        """The delta that a potential makes: its gradient, in the network's prediction space."""
        facts, batch = at.facts, state.shape[0]
        inputs = x[:batch].to(self.predict.dtype)
        gradient = potential_gradient(
            potential,
            inputs,
            at.time.expand(batch),
            self.predict.conditions.target if potential.targets else None,
            state,
            prediction,
            facts,
            at.table,
            graph,
        )
        gradient = torch.where(weight != 0.0, gradient, 0.0)  # it may not be finite for the others
        finite = gradient.flatten(1).isfinite().all(1)
        now = torch.where(finite, self.bad_gradient, at.counted)
        self.bad_gradient = torch.minimum(self.bad_gradient, now)
        return gradient if potential.mean else facts[Fact.GAIN] * gradient

    def _moving(
        self, branch: Branch, row: Tensor, weight: Tensor, delta: Tensor, how: Rectified | None
    ) -> Tensor:
        """The delta with its momentum, which is that of the denoised image; it rests where the
        weight is 0, as for a sample alone, whose delta is not computed then.
        """
        assert branch.projection is not None
        if how is not None:
            assert self.predict.factor is not None
            delta = self.predict.factor * delta
        now, before = row[Column.OF_PREDICTION] * delta.float(), self.momenta.get(branch)
        if before is not None:
            now = now + branch.projection.momentum * before
        rest = 0.0 if before is None else before
        self.momenta[branch] = torch.where(weight != 0.0, now, rest)
        return now / row[Column.OF_PREDICTION]

    def _weigh(
        self,
        at: At,
        pattern: Pattern,
        planned: Tensor,
        branches: list[Tensor],
        deltas: int,
        factor: Tensor | None,
        factored: int,
        state: Tensor,
    ) -> Tensor:
        """Write this evaluation's weights, where they are not the plan's; and what they are."""
        if pattern is not at.row.pattern:
            self._write(at, planned)
        if not pattern.projects:
            return planned
        row = at.table
        base = row[Column.OF_X : Column.OF_PREDICTION + 1]
        if at.each:
            base = base.flatten(1).T.contiguous()
        gram = ops.gram(state, branches, base, deltas, factor, factored)
        null = Branch("null")
        at_null = pattern.branches.index(null) if null in pattern.branches else None
        products = Products(gram, row[Column.OF_PREDICTION].flatten(), state[0].numel(), at_null)
        weights = projected_weights(pattern, products, planned, self.memory)
        self._write(at, weights)
        for branch, kept in self.memory.items():
            if "off" in kept:
                self.latches.show(branch, kept["off"])
        return weights

    def _write(self, at: At, weights: Tensor) -> None:
        """The row's weights, its first columns: those of the branches there are."""
        rows = self.weights[:, :, : weights.shape[1]]
        if at.each:
            rows[:, 0] = weights
        elif isinstance(at.number, int):
            rows[at.number] = weights
        else:
            rows.index_copy_(0, at.number, weights.to(rows.dtype).expand(rows.shape[1:])[None])


def _planned(at: At, pattern: Pattern) -> Tensor:
    """The plan's weights `[B or 1, 1 + K]` of what is left of its pattern."""
    planned = at.row.pattern
    if pattern == planned:
        return at.weights
    assert planned is not None
    columns = [1 + planned.branches.index(branch) for branch in pattern.branches]
    return torch.stack([at.weights[:, column] for column in (0, *columns)], dim=1)


def _only(channels: tuple[int, ...], delta: Tensor) -> Tensor:
    """The delta with other channels 0."""
    kept = torch.zeros_like(delta)
    for channel in channels:
        kept[:, channel] = delta[:, channel]
    return kept


def _delta(positive: Tensor, tensor: Tensor, given: bool) -> Tensor:
    return tensor if given else positive - tensor
