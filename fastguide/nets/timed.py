"""The time embedding that chosen rows of a layer see."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from fastguide import ops
from fastguide.perturbation import NoisyTime
from fastguide.staged import Routing

_STREAM = zlib.crc32(b"time")


def timed(embedding: Tensor, layer: str, routing: Routing) -> Tensor:
    """`embedding` `[rows, ...]`; `+ strength time^power n` in the rows where `routing` perturbs
    `layer` so, n standard normal: one for all layers, sample i's by its own seed alone.
    """
    segments = routing.segments.get(layer, ())
    if not any(isinstance(segment.how, NoisyTime) for segment in segments):
        return embedding
    assert routing.seeds is not None
    assert routing.time is not None
    unit = routing.seeds.shape[0]
    noise = ops.noise(routing.seeds, embedding.shape[1:], _STREAM).to(embedding.dtype)
    parts = []
    for segment in segments:
        rows = embedding[segment.start * unit : segment.stop * unit]
        if isinstance(segment.how, NoisyTime):
            size = segment.how.strength * routing.time**segment.how.power
            copies = noise.repeat(segment.stop - segment.start, *[1] * (noise.ndim - 1))
            rows = rows + size.to(rows.dtype) * copies
        parts.append(rows)
    return torch.cat(parts)
