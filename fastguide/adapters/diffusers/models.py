"""A network of diffusers as a `Model`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastguide.adapters.diffusers.flux import Flux
from fastguide.adapters.diffusers.networks import adapt
from fastguide.adapters.diffusers.schedulers import meaning_of
from fastguide.model import Model


def from_diffusers(net: Any, scheduler: Any, shape: Sequence[int] | None = None) -> Model:
    """See `fastguide.adapters.diffusers.from_diffusers`."""
    meaning = meaning_of(scheduler)
    adapted = adapt(net, meaning.time_scale)
    return Model(
        adapted,
        meaning.process,
        meaning.prediction,
        tuple(int(side) for side in shape) if shape is not None else _shape_of(adapted),
        null=adapted.null or None,
        variance=adapted.outputs == 2,
    )


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
