"""The time as networks are given it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def time_embedding(t: Tensor, width: int = 256) -> Tensor:
    """Sinusoidal embedding `[B, width]` in fp32 of times `[B]`; `width` is even."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000.0) / half))
    angles = t.float().unsqueeze(1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)
