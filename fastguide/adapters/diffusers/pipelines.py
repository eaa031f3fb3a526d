"""A pipeline of diffusers under our guidance: the same class, the same call."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fastguide.adapters.diffusers.families import family_of
from fastguide.adapters.diffusers.guided import (
    Guided,
    Parts,
    check_negative,
    is_distilled,
    like,
)
from fastguide.adapters.diffusers.run import Run, Settings
from fastguide.guidance.base import Guidance, no_guidance


def guide(
    pipe: Any,
    guidance: Guidance | None = None,
    compile: bool | Mapping[str, Any] = False,
    check: bool = True,
    habits: bool = True,
) -> Any:
    """See `fastguide.adapters.diffusers.guide`."""
    if isinstance(pipe, Guided):
        raise ValueError("pipe is guided already; give guide the original")
    family = family_of(pipe)
    if guidance is not None and not isinstance(guidance, Guidance):
        raise no_guidance(guidance)
    options = None if compile is False else ({} if compile is True else dict(compile))
    parts = Parts(family, guidance, options, check, habits=habits)
    inner = getattr(pipe, family.net)
    if inner is None and family.second is not None:
        inner = getattr(pipe, family.second[0])
    run = Run(inner, copy.deepcopy(pipe.scheduler), Settings(family, guidance), parts.cache)
    check_negative(run, type(pipe).__name__, is_distilled(inner, family, pipe))
    for layers in _layers_of(guidance):
        run.choose(layers)
    return like(pipe, parts)


def _layers_of(guidance: Guidance | None) -> list[Any]:
    if guidance is None:
        return []
    branches = [term.branch for term in guidance.terms()]
    found = [b.layers for b in branches if b.layers]
    found += [b.degraded.layers for b in branches if b.degraded and b.degraded.layers]
    return found + [one.layers for one in guidance.inside()]
