"""A run's inputs as one pytree of batch-first tensors, for graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.run import Inputs

Rebuild = Callable[[Any, Mapping[Pattern, Passes]], tuple[Plan, Mapping[Pattern, Passes], Inputs]]


def as_tree(
    plan: Plan, inputs: Inputs, drawn: Callable[[Any], Any], padded: int = 0
) -> tuple[Any, Rebuild]:
    """(tree, rebuild): all that changes from run to run, filled up with `padded` copies of the
    last sample, and what makes a run's first arguments of such a tree.

    Args:
        drawn: the random condition beside the network's own condition.
    """
    conditions, batch = inputs.conditions, len(inputs.seeds)
    nets = list(conditions.fixed)
    first = {
        "conds": [dict(conditions.fixed[net]) for net in nets],
        "target": conditions.target,
        "seeds": inputs.seeds,
        "noise": inputs.noise,
        "step_noise": None if inputs.step_noise is None else list(inputs.step_noise),
        "weights": plan.weights.expand(-1, batch, -1).transpose(0, 1),
        "nag": plan.nag.expand(-1, batch).transpose(0, 1),
    }

    def rebuild(
        tree: Any, passes: Mapping[Pattern, Passes]
    ) -> tuple[Plan, Mapping[Pattern, Passes], Inputs]:
        fixed = dict(zip(nets, tree["conds"], strict=True))
        bound = Conditions(fixed, drawn(fixed[None]["cond"]), tree["target"])
        weights = tree["weights"].transpose(0, 1).contiguous()
        nag = tree["nag"].transpose(0, 1).contiguous()
        given = Inputs(bound, tree["seeds"], tree["noise"], tree["step_noise"])
        return replace(plan, weights=weights, nag=nag), passes, given

    return tree_map(lambda leaf: _longer(leaf, padded), first), rebuild


def _longer(leaf: Any, by: int) -> Any:
    if by == 0 or not isinstance(leaf, Tensor):
        return leaf
    return torch.cat([leaf, leaf[-1:].expand(by, *leaf.shape[1:])])


def padding(batch: int, sizes: set[int]) -> int:
    """How many samples a batch lacks to the next of `sizes`, 0 where none is larger."""
    larger = [size for size in sizes if size >= batch]
    return min(larger) - batch if larger else 0
