"""The passes of a pattern: which rows run through which network, and under which conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastguide.engine.compiled import Compiled
from fastguide.engine.pattern import Pattern
from fastguide.engine.program import Program, RowMode, make_program
from fastguide.guidance.base import Branch, Condition, Other
from fastguide.staging.conditions import alike
from fastguide.staging.contract import embed_times

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
        return self.mapped(lambda leaf: leaf.repeat(batch, *[1] * (leaf.ndim - 1))).undrawn()

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        """Those with every tensor changed; what is drawn is drawn as before."""

        def of_leaf(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) else leaf

        fixed = {net: tree_map(of_leaf, dict(values)) for net, values in self.fixed.items()}
        return Conditions(fixed, self.drawn, tree_map(of_leaf, self.target))

    @cached_property
    def joinable(self) -> bool:
        """Whether the conditions of each network can lie along one batch: not where prompts have
        different lengths.
        """
        for values in self.fixed.values():
            trees = [tree_flatten(value) for value in values.values() if value is not None]
            if len({str(form) for _, form in trees}) > 1:
                return False
            if not all(map(alike, zip(*(leaves for leaves, _ in trees), strict=True))):
                return False
        return True

    def undrawn(self) -> Conditions:
        """Those with the call's own condition wherever one would be drawn."""
        own = self.fixed[None].get("cond")
        return self if self.drawn is None else replace(self, drawn=lambda _: own)


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass: its rows, the first of which says what is special about it, their program, and
    what its network makes of times alone (`fastguide.staging.contract.embed_times`); `compiled`
    runs the program, where it is not run as it is.
    """

    rows: tuple[Branch, ...]
    program: Program
    embed_times: Callable[[Tensor], Tensor] | None = None
    compiled: Compiled | None = None

    @cached_property
    def draws_condition(self) -> bool:
        """Whether a row has a random condition."""
        return any(row.cond == "random" for row in self.rows)


@dataclass(frozen=True)
class Passes:
    """The first pass of a pattern, and those after it: degraded inputs, other networks. These run
    `beside` the first, on a stream of their own, or after it.
    """

    first: Pass
    others: tuple[Pass, ...] = ()
    beside: bool = False

    @property
    def all(self) -> tuple[Pass, ...]:
        """All of them."""
        return (self.first, *self.others)

    @property
    def inputs(self) -> int:
        """How many copies of x the first pass is given."""
        return self.first.program.inputs

    @cached_property
    def draws(self) -> bool:
        """Whether anything is drawn beside the update's noise."""
        masks = [row.degraded.mask for one in self.others for row in one.rows if row.degraded]
        drawn = (one.program.draws or one.draws_condition for one in self.all)
        return "random" in masks or any(drawn)


def make_passes(
    pattern: Pattern, nets: Nets, mode: RowMode = "batched", compiled: Compiled | None = None
) -> Passes:
    """The programs of `pattern` for `nets`, which are run as they are, or `compiled`.

    Raises:
        ValueError: one cannot be compiled.
    """

    def make(rows: tuple[Branch, ...], *how: Any) -> Pass:
        net = nets[rows[0].net]
        if compiled is None:
            return Pass(rows, make_program(rows, net, *how), embed_times(net))
        key = (id(net), rows, *how)
        program = compiled.program(key, lambda: make_program(rows, net, *how))
        return Pass(rows, program, embed_times(net), compiled)

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
        after.append(make(rows, nag, (), mode))
    how = (pattern.nag, tuple(observe), mode, pattern.graph, checkpoint)
    return Passes(make(first, *how), tuple(after), mode == "beside")
