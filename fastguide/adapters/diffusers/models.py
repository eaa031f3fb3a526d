"""A network of diffusers as a `Model`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastguide.adapters.diffusers.flux import Flux
from fastguide.adapters.diffusers.networks import adapt
from fastguide.adapters.diffusers.schedulers import course_of, meaning_of
from fastguide.model import Model
from fastguide.sampling.course import Usual

PATCH = 2  # pixels a side of a token of latents, in all families whose shifts follow their number


def from_diffusers(net: Any, scheduler: Any, shape: Sequence[int] | None = None) -> Model:
    """See `fastguide.adapters.diffusers.from_diffusers`."""
    meaning = meaning_of(scheduler)
    adapted = adapt(net, meaning.time_scale)
    sides = tuple(int(side) for side in shape) if shape is not None else _shape_of(adapted)
    return Model(
        adapted,
        meaning.process,
        meaning.prediction,
        sides,
        null=adapted.null or None,
        variance=adapted.outputs == 2,
        usual=partial(usual_of, copy.deepcopy(scheduler), sides),
    )


def usual_of(scheduler: Any, shape: tuple[int, ...], steps: int) -> Usual:
    """What the scheduler makes of `steps` steps: its levels, from its own first noise on, its
    solver and its clamp.

    Args:
        shape: of one sample; a scheduler whose shift follows the size is told its tokens.

    Raises:
        ValueError: the scheduler's run of so many steps is not one of ours, or its network times
            are not those of its levels.
    """
    scheduler = copy.deepcopy(scheduler)
    told: dict[str, float] = {}
    if getattr(scheduler.config, "use_dynamic_shifting", False):
        told = {"mu": _shift_of(scheduler.config, shape)}
    scheduler.set_timesteps(steps, **told)
    meaning, course = meaning_of(scheduler), course_of(scheduler)
    first = course.levels.points[0]
    start = float(getattr(scheduler, "init_noise_sigma", 1.0))
    levels = replace(course.levels, start=start * (first.alpha if meaning.scaled else 1.0))
    visited = [update.at for update in course.solver.run(levels) if update.at is not None]
    for at, time in zip(visited, course.times, strict=True):
        found = meaning.prediction.net_time(at)
        if not math.isclose(found, time, rel_tol=1e-4, abs_tol=1e-4):
            raise ValueError(
                f"the scheduler is a {type(scheduler).__name__} whose network is told the time "
                f"{time} at {at}, where we would tell it {found}; name levels and solver"
            )
    return Usual(levels, course.solver, meaning.clamp)


def _shift_of(config: Any, shape: tuple[int, ...]) -> float:
    """mu: linear in the number of tokens, as the pipelines of flow models have it."""
    tokens = math.prod(shape[1:]) / PATCH ** len(shape[1:])
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    return float(config.base_shift + slope * (tokens - config.base_image_seq_len))


def _shape_of(adapted: Any) -> tuple[int, ...]:
    config = adapted.net.config
    side = getattr(config, "sample_size", None)
    if side is None:
        raise ValueError(
            f"shape is None, but the config of {type(adapted.net).__name__} has no sample_size; "
            "give the shape of one sample, (C, H, W)"
        )
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    channels = config.in_channels // 4 if isinstance(adapted, Flux) else adapted.channels
    return (channels, height, width)
