"""One evaluation: all passes of its pattern, and the prediction of each branch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastguide import ops
from fastguide.engine.degrade import degraded_offset
from fastguide.engine.filters import high_pass
from fastguide.engine.gradient import Graph, difference_factor, potential_gradient, reg_factor
from fastguide.engine.latch import Latch
from fastguide.engine.pattern import MOVED, Pattern
from fastguide.engine.plan import Fact, Plan, Row
from fastguide.engine.program import Program, RowMode, make_program
from fastguide.engine.project import Products, projected_weights
from fastguide.engine.rows import Context, bind, run_program
from fastguide.guidance.base import POSITIVE, Branch, Condition, Other
from fastguide.guidance.modifiers import Rectified
from fastguide.guidance.potential import Potential
from fastguide.staged import Normalized
from fastguide.table import Column, Extra

VARIANCE = Branch("cond", head=1)  # the second part of the output, whatever it means
Nets = Mapping[Other | None, Any]  # None is the network that is sampled


@dataclass(frozen=True)
class Conditions:
    """What the networks take as `cond`.

    Args:
        fixed: for each network, for each condition that is the same all along.
        drawn: the random condition, from seeds int64 `[B]`; None where the guidance has none.
        target: the call's condition, for potentials.
    """

    fixed: Mapping[Other | None, Mapping[Condition, Any]]
    drawn: Callable[[Tensor], Any] | None = None
    target: Any = None

    def repeated(self, batch: int) -> Conditions:
        """Those of one sample, for a batch of them, to measure time with: nothing is drawn."""
        fixed = {
            net: {name: _repeated(value, batch) for name, value in one.items()}
            for net, one in self.fixed.items()
        }
        drawn = None if self.drawn is None else lambda _: fixed[None]["cond"]
        return Conditions(fixed, drawn, _repeated(self.target, batch))


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass: its rows, the first of which says what is special about it, and their program."""

    rows: tuple[Branch, ...]
    program: Program

    @property
    def draws_condition(self) -> bool:
        """Whether a row has a random condition."""
        return any(row.cond == "random" for row in self.rows)


@dataclass(frozen=True)
class Passes:
    """The first pass of a pattern, and those after it: degraded inputs, other networks."""

    first: Pass
    others: tuple[Pass, ...] = ()

    @property
    def all(self) -> tuple[Pass, ...]:
        """All of them."""
        return (self.first, *self.others)

    @property
    def inputs(self) -> int:
        """How many copies of x the first pass is given."""
        return self.first.program.inputs

    @property
    def draws(self) -> bool:
        """Whether anything is drawn beside the update's noise."""
        masks = [row.degraded.mask for one in self.others for row in one.rows if row.degraded]
        drawn = (one.program.draws or one.draws_condition for one in self.all)
        return "random" in masks or any(drawn)


def make_passes(pattern: Pattern, nets: Nets, mode: RowMode = "batched") -> Passes:
    """The programs of `pattern` for `nets`."""
    first, *others = pattern.passes
    observe = [
        (str(layer), rows[0].source)
        for rows in others
        if rows[0].degraded is not None
        for layer in rows[0].degraded.layers
    ]
    checkpoint = pattern.rectified is not None and pattern.rectified.checkpoint
    after = []
    for rows in others:
        nag = pattern.nag if rows[0].net is None else None
        after.append(Pass(rows, make_program(rows, nets[rows[0].net], nag, (), mode)))
    return Passes(
        Pass(
            first,
            make_program(first, nets[None], pattern.nag, observe, mode, pattern.graph, checkpoint),
        ),
        tuple(after),
    )


@dataclass(frozen=True)
class Combination:
    """What one evaluation gives to `ops.step`: its arguments of these names; and the `shift` of the
    mean of the update's noise, in units of its variance.
    """

    branches: list[Tensor]
    weights: Tensor | None = None
    deltas: int = 0
    factor: Tensor | None = None
    factored: int = 0
    variance: Tensor | None = None
    shift: Tensor | None = None


EMPTY = Combination([])


class Evaluate:
    """The evaluations of one run, in order: `evaluate(e, pattern, x, state)`.

    Args:
        outputs: parts of the network's output along its channels.
    """

    def __init__(
        self,
        plan: Plan,
        passes: Mapping[Pattern, Passes],
        conditions: Conditions,
        seeds: Tensor,
        dtype: torch.dtype,
        outputs: int,
    ) -> None:
        self.plan, self.passes, self.conditions = plan, passes, conditions
        self.seeds, self.dtype, self.outputs = seeds, dtype, outputs
        self.deltas: dict[Branch, Tensor] = {}  # what is held
        self.momenta: dict[Branch, Tensor] = {}
        self.factor: Tensor | None = None
        self.memory: dict[Branch, dict[str, Tensor]] = {}
        self.latches: dict[Branch, Latch] = {}
        self.weights = plan.weights
        if plan.projects:
            self.weights = plan.weights.expand(-1, seeds.shape[0], -1).contiguous()
        self.bad_gradient = torch.full_like(plan.index[0], len(plan.rows))
        self.bound = {
            one: bind(one.program, conditions.fixed[one.rows[0].net])
            for of_pattern in passes.values()
            for one in of_pattern.all
            if not one.draws_condition
        }

    def pattern(self, row: Row) -> Pattern | None:
        """The pattern of the plan's row, less what adaptive guidance has ended by now."""
        planned = row.pattern
        if planned is None or not self.latches or row.extra == Extra.NEGATIVE:
            return planned
        latching = set(planned.branches) - set(planned.settled.branches)
        if latching and all(b in self.latches and self.latches[b].closed for b in latching):
            return planned.settled
        return planned

    def __call__(self, e: int, pattern: Pattern, x: Tensor, state: Tensor) -> Combination:
        """The deltas of all branches, and what combines them.

        Args:
            e: the plan's row.
            x: the network's input, `[inputs B, *shape]`.
            state: x in fp32 and unscaled, `[B, *shape]`.

        Raises:
            ValueError: a network or a potential returns what it should not.
        """
        facts, row = self.plan.facts[e], self.plan.table[e]
        graph = Graph(facts, row, state.shape[1]) if pattern.graph else None
        parts = self._predictions(e, pattern, x, state, graph)
        positive = parts[POSITIVE]
        branches, deltas, factored, shift = [positive], 0, 0, None
        for k, branch in enumerate(pattern.branches[1:], 1):
            tensor, given = self._delta(e, pattern, branch, parts, x, state, graph)
            if branch.potential is not None and branch.potential.mean:
                weight = self.plan.weights[e, :, 1 + k].view(-1, *[1] * (state.ndim - 1))
                shift = weight * tensor if shift is None else shift + weight * tensor
                continue
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
                tensor = self._moving(branch, row, _delta(positive, tensor, given), how)
                given, how = True, None
            deltas |= given << len(branches)
            factored |= (how is not None) << len(branches)
            branches.append(tensor)
        if graph is not None:
            graph.release()
        factor = self.factor if factored else None
        self._project(e, pattern, branches, deltas, factor, factored, state)
        variance = parts.get(VARIANCE)
        return Combination(branches, self.weights, deltas, factor, factored, variance, shift)

    def _predictions(
        self, e: int, pattern: Pattern, x: Tensor, state: Tensor, graph: Graph | None
    ) -> dict[Branch, Tensor]:
        """All that the networks predict; REG's factor is refreshed on the way."""
        plan, passes, nag = self.plan, self.passes[pattern], None
        facts, row, how = plan.facts[e], plan.table[e], pattern.rectified
        if pattern.nag is not None:
            nag = Normalized(plan.nag[e], pattern.nag.tau, pattern.nag.alpha)
        seeds = ops.derive_seeds(self.seeds, e) if passes.draws else None
        h = None
        if pattern.refreshed and how is not None and how.mode == "difference":
            narrow = self.dtype != torch.float32
            h = (how.step or (0.1 if narrow else 0.003)) * facts[Fact.SIGMA]
        move = None if h is None else facts[Fact.INPUT_SCALE] * h
        context = Context(seeds, facts[Fact.TIME], nag, move)
        only_factor = not any(b.derived for b in pattern.branches)

        def differentiate(leaf: Tensor, output: Tensor) -> None:
            assert graph is not None
            graph.take(leaf, output)
            if pattern.refreshed and how is not None and how.mode == "vjp":
                self.factor = reg_factor(facts, graph.product(None, keep=not only_factor))
            if only_factor:
                graph.release()

        parts = {
            rows.with_head(head): part
            for rows, output in self._run(e, passes.first, x, context, differentiate).items()
            for head, part in enumerate(output.chunk(self.outputs, 1))
        }
        positive = parts[POSITIVE]
        if h is not None:
            self.factor = difference_factor(facts, row, parts[MOVED], positive, h)
        for one in passes.others:
            branch = one.rows[0]
            if branch.net is not None:
                parts[branch] = self._run(e, one, x, context)[branch][:, : state.shape[1]]
            else:
                parts[branch] = self._degraded(e, one, parts[branch.source], state, context)
        return parts

    def _delta(
        self,
        e: int,
        pattern: Pattern,
        branch: Branch,
        parts: dict[Branch, Tensor],
        x: Tensor,
        state: Tensor,
        graph: Graph | None,
    ) -> tuple[Tensor, bool]:
        """What the delta is made from, and whether it is the delta itself."""
        if branch in pattern.held:
            return self.deltas[branch.delta], True
        if branch.potential is not None:
            delta = self._gradient(e, branch.potential, x, state, parts[POSITIVE], graph)
            if branch.every > 1:
                self.deltas[branch.delta] = delta
            return delta, True
        found = parts[branch.prediction]
        if branch.every > 1:
            self.deltas[branch.delta] = parts[POSITIVE] - found
        return found, False

    def _gradient(
        self,
        e: int,
        potential: Potential,
        x: Tensor,
        state: Tensor,
        prediction: Tensor,
        graph: Graph | None,
    ) -> Tensor:
        """The delta that a potential makes: its gradient, in the network's prediction space."""
        facts, batch = self.plan.facts[e], state.shape[0]
        inputs = x[:batch].to(self.dtype)
        gradient = potential_gradient(
            potential,
            inputs,
            self.plan.times[e].expand(batch),
            self.conditions.target if potential.targets else None,
            state,
            prediction,
            facts,
            self.plan.table[e],
            graph,
        )
        finite = gradient.isfinite().all()
        now = torch.where(finite, self.bad_gradient, self.plan.index[e])
        self.bad_gradient = torch.minimum(self.bad_gradient, now)
        return gradient if potential.mean else facts[Fact.GAIN] * gradient

    def _moving(self, branch: Branch, row: Tensor, delta: Tensor, how: Rectified | None) -> Tensor:
        """The delta with its momentum, which is that of the denoised image."""
        assert branch.projection is not None
        if how is not None:
            assert self.factor is not None
            delta = self.factor * delta
        now = row[Column.OF_PREDICTION] * delta.float()
        if branch in self.momenta:
            now = now + branch.projection.momentum * self.momenta[branch]
        self.momenta[branch] = now
        return now / row[Column.OF_PREDICTION]

    def _project(
        self,
        e: int,
        pattern: Pattern,
        branches: list[Tensor],
        deltas: int,
        factor: Tensor | None,
        factored: int,
        state: Tensor,
    ) -> None:
        """Write this evaluation's weights, where they depend on inner products."""
        planned = self.plan.rows[e].pattern
        assert planned is not None
        known = self.plan.weights[e]
        if pattern != planned:
            columns = [1 + planned.branches.index(branch) for branch in pattern.branches]
            known = torch.stack([known[:, column] for column in (0, *columns)], dim=1)
            self.weights[e, :, : known.shape[1]] = known
        if not pattern.projects:
            return
        row = self.plan.table[e]
        base = row[Column.OF_X : Column.OF_PREDICTION + 1]
        gram = ops.gram(state, branches, base, deltas, factor, factored)
        products = Products(gram, row[Column.OF_PREDICTION], state[0].numel())
        weights = projected_weights(pattern, products, known, self.memory)
        self.weights[e, :, : weights.shape[1]] = weights
        for branch, kept in self.memory.items():
            if "off" in kept:
                self.latches.setdefault(branch, Latch()).show(kept["off"])

    def _run(
        self,
        e: int,
        one: Pass,
        x: Tensor,
        context: Context,
        differentiate: Callable[[Tensor, Tensor], None] | None = None,
    ) -> dict[Branch, Tensor]:
        """One pass, x `[B, *shape]` or the copies that the program takes."""
        batch, net = self.seeds.shape[0], one.rows[0].net
        if one.draws_condition:
            assert self.conditions.drawn is not None
            assert context.seeds is not None
            drawn = self.conditions.drawn(context.seeds)
            bound = bind(one.program, {**self.conditions.fixed[None], "random": drawn})
        else:
            bound = self.bound[one]
        if x.shape[0] != one.program.inputs * batch:
            x = x[:batch].repeat(one.program.inputs, *[1] * (x.ndim - 1))
        outputs = self.outputs if net is None else net.model.outputs
        shape = (outputs * x.shape[1], *x.shape[2:])
        t = self.plan.times[e]
        return run_program(one.program, x, t, bound, batch, shape, context, differentiate)

    def _degraded(
        self, e: int, one: Pass, source: Tensor, state: Tensor, context: Context
    ) -> Tensor:
        """The prediction for the degraded input, moved to where it has the same eps at x; `source`
        is that for x itself.
        """
        facts, branch = self.plan.facts[e], one.rows[0]
        settings = branch.degraded
        assert settings is not None
        observed = context.observed.get((*settings.layers, branch.source))
        offset = degraded_offset(
            settings, state, source, self.plan.table[e], facts[Fact.ALPHA], observed, context.seeds
        )
        x = ((state + offset) * facts[Fact.INPUT_SCALE]).to(self.dtype)
        prediction = self._run(e, one, x, context)[branch][:, : state.shape[1]]
        return prediction.float() + facts[Fact.MOVE] * offset


def _delta(positive: Tensor, tensor: Tensor, given: bool) -> Tensor:
    return tensor if given else positive - tensor


def _repeated(cond: Any, batch: int) -> Any:
    def repeat(leaf: Any) -> Any:
        return leaf.repeat(batch, *[1] * (leaf.ndim - 1)) if isinstance(leaf, Tensor) else leaf

    return tree_map(repeat, cond)
