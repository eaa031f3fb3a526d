"""Time and place as networks are given them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def time_embedding(t: Tensor, width: int = 256) -> Tensor:
    """Sinusoidal embedding `[B, width]` in fp32 of times `[B]`; `width` is even."""
    half = width // 2
    rates = torch.exp(
        torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / half)
    )
    angles = t.float().unsqueeze(1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_embedding(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Fixed 2-D sine-cosine embedding `[h w, width]` of a token grid of any size."""
    quarter = width // 4
    rates = torch.exp(
        torch.arange(quarter, device=device, dtype=torch.float32) * (-math.log(10000.0) / quarter)
    )
    rows = torch.arange(grid[0], device=device, dtype=torch.float32).unsqueeze(1) * rates
    columns = torch.arange(grid[1], device=device, dtype=torch.float32).unsqueeze(1) * rates
    rows = torch.cat([rows.sin(), rows.cos()], 1).unsqueeze(1).expand(*grid, -1)
    columns = torch.cat([columns.sin(), columns.cos()], 1).unsqueeze(0).expand(*grid, -1)
    return torch.cat([rows, columns], 2).flatten(0, 1)
