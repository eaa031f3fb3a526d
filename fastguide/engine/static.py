"""A run's inputs as one pytree of tensors, for graphs: also all numbers of its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastguide.engine.passes import Conditions
from fastguide.engine.path import Path
from fastguide.engine.plan import Plan
from fastguide.engine.run import Inputs

Rebuild = Callable[[Any], tuple[Plan, Inputs]]
NUMBERS = ("table", "times", "facts", "index")  # of a plan, the same for all samples


def as_tree(
    plan: Plan, inputs: Inputs, drawn: Callable[[Any], Any], padded: int = 0
) -> tuple[Any, Rebuild]:
    """(tree, rebuild): all that changes from run to run, filled up with `padded` copies of the
    last sample, and what makes a run's first arguments of such a tree, without a copy.

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
        "init": inputs.init,
        "step_noise": None if inputs.step_noise is None else list(inputs.step_noise),
    }
    tree = {
        **tree_map(lambda leaf: _longer(leaf, padded), first),
        **{name: getattr(plan, name) for name in NUMBERS},
        "weights": _longer(plan.weights.expand(-1, batch, -1), padded, 1),
        "nag": _longer(plan.nag.expand(-1, batch), padded, 1),
        "path": None if plan.path is None else (plan.path.nodes, plan.path.gains),
    }

    def rebuild(tree: Any) -> tuple[Plan, Inputs]:
        fixed = dict(zip(nets, tree["conds"], strict=True))
        bound = Conditions(fixed, drawn(fixed[None]["cond"]), tree["target"])
        numbers = {name: tree[name] for name in (*NUMBERS, "weights", "nag")}
        path = None if tree["path"] is None else Path(*tree["path"])
        given = Inputs(bound, tree["seeds"], tree["noise"], tree["step_noise"], tree["init"])
        return replace(plan, **numbers, path=path), given

    return tree, rebuild


def _longer(leaf: Any, by: int, dim: int = 0) -> Any:
    if by == 0 or not isinstance(leaf, Tensor):
        return leaf
    last = leaf.narrow(dim, leaf.shape[dim] - 1, 1)
    return torch.cat([leaf, *[last] * by], dim)


def padding(batch: int, sizes: set[int]) -> int:
    """How many samples a batch lacks to the next of `sizes`, 0 where none is larger."""
    larger = [size for size in sizes if size >= batch]
    return min(larger) - batch if larger else 0
