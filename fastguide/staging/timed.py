"""The time embedding that chosen rows of a layer see."""

from __future__ import annotations

import zlib

from torch import Tensor

from fastguide import ops
from fastguide.staging.contract import Routing, Segment
from fastguide.staging.perturbation import NoisyTime

_STREAM = zlib.crc32(b"time")


def timed(embedding: Tensor, layer: str, routing: Routing) -> Tensor:
    """`embedding` `[rows, ...]`; `+ strength time^power n` in the rows where `routing` perturbs
    `layer` so, n standard normal: one for all layers, sample i's by its own seed alone.
    """

    def noisy(rows: Tensor, segment: Segment) -> Tensor:
        assert isinstance(segment.how, NoisyTime)
        assert routing.seeds is not None
        assert routing.time is not None
        noise = ops.noise(routing.seeds, rows.shape[1:], _STREAM).to(rows.dtype)
        size = segment.how.strength * routing.time**segment.how.power
        sized = size.to(rows.dtype).reshape(-1, *[1] * (noise.ndim - 1)) * noise
        return rows + sized.repeat(segment.stop - segment.start, *[1] * (noise.ndim - 1))

    return routing.changed(embedding, layer, NoisyTime, noisy)
