"""Group normalisation of feature maps that lie channels last, scaled and shifted by an embedding.

The work is one op, `fastguide.ops.group_norm`, which reads the map twice and writes it once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastguide import ops


class GroupNorm(nn.Module):
    """`GN(h) (1 + scale) + shift` (AdaGN, Dhariwal and Nichol 2021), then SiLU where asked.

    Computed in fp32 and rounded once, whatever the type of the map.
    """

    def __init__(self, channels: int, groups: int, silu: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.silu, self.eps = groups, silu, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, h: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Of `h` `[rows, C, H, W]` with `scale` and `shift` `[rows, C]`."""
        gamma, beta = self.weight.float().expand(h.shape[0], -1), self.bias.float()
        if scale is not None and shift is not None:
            more = 1 + scale.float()
            gamma, beta = gamma * more, beta * more + shift.float()
        beta = beta.expand(h.shape[0], -1)
        tokens = to_tokens(h).contiguous()
        tokens = tokens.float() if tokens.dtype == torch.float64 else tokens
        out = ops.group_norm(tokens, gamma, beta, self.groups, self.eps, self.silu)
        return to_pixels(out.to(h.dtype), h.shape[2:])


def to_tokens(h: Tensor) -> Tensor:
    """`[rows, C, H, W]` to `[rows, H W, C]`: a view, contiguous where `h` is channels last."""
    return h.flatten(2).transpose(1, 2)


def to_pixels(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """`[rows, H W, C]` to `[rows, C, H, W]`: a view, channels last where `tokens` is contiguous."""
    return tokens.transpose(1, 2).unflatten(2, size)
