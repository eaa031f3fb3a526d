"""Runs one evaluation of some live requests: gathers their state, ticks, and puts it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastguide.engine.evaluate import Kept
from fastguide.engine.gradient import differentiable
from fastguide.engine.graph import Graphs, Work, whole
from fastguide.engine.passes import Conditions, Passes, make_passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.program import RowMode
from fastguide.engine.stacked import DENOISED, SLOTS, Kind, X
from fastguide.engine.tick import BAD, Batch, tick
from fastguide.guidance.base import Branch, Condition, Other
from fastguide.sampling.conditions import random_condition
from fastguide.sampling.setup import Setup
from fastguide.serving.live import Live, Places


class Needs(NamedTuple):
    """What the passes of a pattern read: for each network the conditions; whether the target."""

    conditions: Mapping[Other | None, tuple[Condition, ...]]
    target: bool


class Batches:
    """Evaluations of live requests.

    Args:
        nets: all networks that requests named so far, the server's own under None; may grow.
        fill: the size that batches are filled up to; None: those of captured graphs to the next
            power of two, and others not at all.
        graphs: captures by kind and size; None: eagerly.
    """

    def __init__(
        self,
        setup: Setup,
        places: Places,
        nets: dict[Other | None, Any],
        fill: int | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        self.setup, self.places, self.nets = setup, places, nets
        self.fill, self.graphs = fill, graphs
        self._numbers: dict[object, int] = {}  # of keys
        self._passes: dict[tuple[Pattern, RowMode], Passes] = {}
        self._needs: dict[Pattern, Needs] = {}
        self._differentiable: Any = None
        self._joined: tuple[object, Any, Any] = (None, None, None)
        self._left: dict[object, list[tuple[str, Branch, str]]] = {}

    def key(self, one: Live) -> int:
        """Equal for requests that can share their next evaluation."""
        ended = len(one.ended)
        if one.key[:2] != (one.e, ended):
            number = self._numbers.setdefault(self._key(one), len(self._numbers))
            one.key = (one.e, ended, number)
        return one.key[2]

    def _key(self, one: Live) -> object:
        kind, _ = one.now()
        pattern = kind.row.pattern
        if pattern is None:
            return kind.key
        fixed, target = self._read(one, pattern)
        leaves, form = tree_flatten((list(fixed.values()), target))
        sides = tuple(
            (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        )
        return (kind.key, str(form), sides)

    def run(self, members: Sequence[Live]) -> Tensor:
        """Run the next row of each, and write what it left to their places. Returns the state
        `[SLOTS, n, *shape]`, which the caller may look at until the next call. Where something
        raises, nothing is written.
        """
        places, count, setup = self.places, len(members), self.setup
        kinds = [one.now()[0] for one in members]
        kind = reduce(Kind.joined, dict.fromkeys(kinds))
        if any(one.previews() for one in members):
            kind = kind.shown
        filled = [*members, *[members[-1]] * (self._size(count, kind) - count)]
        integers = [[one.seed for one in filled], [one.e for one in filled]]
        integers.append([one.place for one in filled])
        seeds, number, index = self._sent(torch.tensor(integers, device="cpu")).unbind()
        state = torch.empty(
            (SLOTS, len(filled), *setup.settings.shape), dtype=torch.float32, device=setup.device
        )
        for slot in range(SLOTS):
            if kind.row.reads >> slot & 1 or slot == X:
                torch.index_select(places.slot(slot), 0, index, out=state[slot])
        kept = {BAD: places.bad_gradient.index_select(0, index)}
        for name in set().union(*(one.kept for one in members)):
            kept[name] = places.kept[name].index_select(0, index)
        passes, levels = None, members[0].plan.plan.levels
        fixed: dict[Other | None, dict[Condition, Any]] = {}
        target: Any = None
        times: dict[Other | None, Tensor] = {}
        pattern = kind.row.pattern
        if pattern is not None:
            fixed, target = self._together(filled, pattern)
            mode: RowMode = "batched" if Conditions(fixed).joinable else "sequential"
            passes = self._passes_of(pattern, mode)
            times = {
                net: torch.stack([one.times[net][one.e] for one in filled])
                for net in fixed
                if net in members[0].times
            }
        batch = Batch(
            state=state,
            numbers=self._sent(torch.stack([one.now()[1] for one in filled])),
            times=times,
            seeds=seeds.contiguous(),
            number=number.contiguous(),
            first_bad=places.first_bad.index_select(0, index),
            conditions=fixed,
            target=target,
            kept=kept,
        )
        how = (levels, setup.settings.dtype, setup.settings.outputs, self._drawn)
        if self.graphs is None or passes is None:
            left = tick(kind, passes, batch, *how)
        else:
            state, first_bad, left = self._replayed(kind, passes, batch, how)
            batch = batch._replace(state=state, first_bad=first_bad)
        self._put_back(members, kind, index[:count], batch, left)
        return state[:, :count]

    def _put_back(
        self, members: Sequence[Live], kind: Kind, index: Tensor, batch: Batch, left: Kept
    ) -> None:
        places, count = self.places, len(members)
        for slot in range(SLOTS):
            if kind.row.writes >> slot & 1 and slot != DENOISED:
                places.slot(slot).index_copy_(0, index, batch.state[slot, :count])
        places.first_bad.index_copy_(0, index, batch.first_bad[:count])
        for name, rows in left.items():
            if name == BAD:
                places.bad_gradient.index_copy_(0, index, rows[:count])
                continue
            places.keep(name, rows[:count], index)
            for one in members:
                one.kept.add(name)

    def _replayed(
        self, kind: Kind, passes: Passes, batch: Batch, how: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor, Kept]:
        """The tick from a graph: one for each kind, size and set of things that are kept."""
        assert self.graphs is not None
        nets, names = list(batch.conditions), list(batch.kept)
        key = (kind, passes.first, passes.others, tuple(names))

        def make(given: Any) -> Work:
            def call() -> Any:
                # what is written is a copy: warming up must not change what a replay reads
                state, first_bad = given["state"].clone(), given["first_bad"].clone()
                times = zip(nets, given["times"], strict=True)
                values = Batch(
                    state=state,
                    numbers=given["numbers"],
                    times={net: one for net, one in times if one is not None},
                    seeds=given["seeds"],
                    number=given["number"],
                    first_bad=first_bad,
                    conditions=dict(zip(nets, given["conditions"], strict=True)),
                    target=given["target"],
                    kept=dict(zip(names, given["kept"], strict=True)),
                )
                left = tick(kind, passes, values, *how)
                self._left[key] = list(left)
                return [state, first_bad, *left.values()]

            return whole(call)

        tree = batch._asdict() | {
            "conditions": list(batch.conditions.values()),
            "kept": list(batch.kept.values()),
            "times": [batch.times.get(net) for net in nets],
        }
        state, first_bad, *left = self.graphs(key, tree, make)
        return state, first_bad, dict(zip(self._left[key], left, strict=True))

    def _size(self, count: int, kind: Kind) -> int:
        """How many samples a batch of `count` is run with."""
        if kind.row.pattern is None:
            return count
        if self.fill is not None:
            return max(self.fill, count)
        return count if self.graphs is None else 1 << (count - 1).bit_length()

    def _sent(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device, without a wait for it."""
        if self.setup.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.setup.device, non_blocking=True)

    def _drawn(self, own: Any) -> Any:
        return partial(random_condition, self.setup.model, own)

    def _passes_of(self, pattern: Pattern, mode: RowMode) -> Passes:
        if (pattern, mode) not in self._passes:
            nets = dict(self.nets)
            if pattern.graph:
                if self._differentiable is None:
                    self._differentiable = differentiable(nets[None])
                nets[None] = self._differentiable
            self._passes[pattern, mode] = make_passes(pattern, nets, mode)
        return self._passes[pattern, mode]

    def _needs_of(self, pattern: Pattern) -> Needs:
        if pattern not in self._needs:
            found: dict[Other | None, list[Condition]] = {}
            for one in self._passes_of(pattern, "batched").all:
                for row in one.rows:
                    # a random condition is drawn beside the network's own
                    cond: Condition = "cond" if row.cond == "random" else row.cond
                    found.setdefault(row.net, []).append(cond)
            target = any(b.potential is not None and b.potential.targets for b in pattern.branches)
            unique = {net: tuple(dict.fromkeys(conds)) for net, conds in found.items()}
            self._needs[pattern] = Needs(unique, target)
        return self._needs[pattern]

    def _read(
        self, one: Live, pattern: Pattern
    ) -> tuple[dict[Other | None, dict[Condition, Any]], Any]:
        """What an evaluation of the pattern reads of a request's conditions."""
        needs = self._needs_of(pattern)
        fixed = {
            net: {name: one.conditions.fixed[net][name] for name in names}
            for net, names in needs.conditions.items()
        }
        return fixed, one.conditions.target if needs.target else None

    def _together(
        self, members: Sequence[Live], pattern: Pattern
    ) -> tuple[dict[Other | None, dict[Condition, Any]], Any]:
        """The conditions of a batch; those of the batch before, where it has the same members."""
        who = (pattern, tuple(one.order for one in members))
        if self._joined[0] != who:
            each = [self._read(one, pattern) for one in members]
            nets = {
                net: tree_map(_cat, *[dict(fixed[net]) for fixed, _ in each]) for net in each[0][0]
            }
            self._joined = (who, nets, tree_map(_cat, *[target for _, target in each]))
        return self._joined[1], self._joined[2]


def _cat(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]
