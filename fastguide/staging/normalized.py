"""NAG: what an attention gives to positive rows, led away from what it gives to negative ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastguide.staging.contract import Normalized, Segment


def nag(
    positive: Tensor,
    mixed: Sequence[Tensor | None],
    segments: Sequence[Segment],
    segment: Segment,
    unit: int,
    settings: Normalized | None,
) -> Tensor:
    """NAG (Chen et al. 2025) where the segment asks for it: led away from z_- by `scale`, its L1
    norm held to `tau` times that of z_+, mixed with z_+ by `alpha`.
    """
    if segment.against is None:
        return positive
    assert settings is not None
    for other, candidate in zip(mixed, segments, strict=True):
        if other is not None and candidate.start <= segment.against < candidate.stop:
            negative = other[(segment.against - candidate.start) * unit :][:unit]
    if settings.shared:
        raise ValueError(
            "queries is 'shared', but these layers are hand-written stages, in which NAG's rows "
            "have their own; fastguide.ByModules runs a network by its modules"
        )
    return led(positive, negative, segment.stop - segment.start, settings)


def led(positive: Tensor, negative: Tensor, blocks: int, settings: Normalized) -> Tensor:
    """NAG of `blocks` blocks of rows `[blocks B, N, C]`, away from those of one `[B, N, C]`."""
    negative = negative.repeat(blocks, 1, 1)
    scale = settings.scale.float().view(-1, 1, 1)
    scale = scale.repeat(blocks, 1, 1) if scale.shape[0] > 1 else scale
    clean = positive.float()  # fp16 would overflow
    away = scale * clean - (scale - 1) * negative.float()
    most = settings.tau * clean.abs().sum(-1, keepdim=True)
    size = away.abs().sum(-1, keepdim=True)
    away = away * torch.where(size > most, most / size, 1.0)
    return (settings.alpha * away + (1 - settings.alpha) * clean).to(positive.dtype)
