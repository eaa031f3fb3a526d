"""A sampler's runs from graphs: whole, or step by step where a whole run would be too large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastguide.engine.graph import Graphs, Work, whole
from fastguide.engine.passes import Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.run import Inputs, run
from fastguide.engine.static import Rebuild, as_tree
from fastguide.engine.steps import Steps
from fastguide.engine.structure import structure
from fastguide.engine.watch import Watch

Way = Literal["whole", "steps"]


class Settings(NamedTuple):
    """What all runs of a sampler have in common, as `run` takes it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    outputs: int


def run_captured(
    graphs: Graphs,
    way: Way,
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    inputs: Inputs,
    settings: Settings,
    drawn: Callable[[Any], Any],
    padded: int = 0,
    watch: Watch | None = None,
    mode: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """What `run` returns, from graphs; the arguments are its own and those of `as_tree`.

    Args:
        watch: only where the way is "steps".
        mode: of the rows; with the plan's structure, what tells one capture from another.
    """
    batch = len(inputs.seeds)
    tree, rebuild = as_tree(plan, inputs, drawn, padded)

    def make(given: Any) -> Work:
        own, fixed = rebuild(given)
        if way == "whole":
            return whole(lambda: _whole(rebuild, given, passes, settings))
        steps = Steps(own, passes, fixed, *settings)
        return Work(steps.parts, steps.drive, steps.ready)

    key = (way, mode, settings, structure(plan, settings.dtype))
    samples, first_bad, bad_gradient = graphs(key, tree, make, watch)
    return samples[:batch], first_bad[:batch], bad_gradient[:batch]


def _whole(
    rebuild: Rebuild, given: Any, passes: Mapping[Pattern, Passes], settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    plan, inputs = rebuild(given)  # within the capture: what it makes is part of the graph
    return run(plan, passes, inputs, *settings)
