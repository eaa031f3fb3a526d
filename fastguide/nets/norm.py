"""Group normalisation of feature maps that lie channels last, scaled and shifted by an embedding.

Reads and writes per element: the map read twice and written once, and two fp32 maps in between.
torch's own kernel is made for groups of many channels: on `[32, 64, 28, 28]` in 32 groups, with
scale, shift and SiLU, it takes 3.6 times as long in fp32 and 16 times in bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        tokens = to_tokens(h)
        mean = tokens.mean(1, dtype=torch.float32)  # of each channel [rows, C]
        centred = tokens - mean.unsqueeze(1)
        variance = (centred * centred).mean(1)
        means, variances = (v.unflatten(1, (self.groups, -1)) for v in (mean, variance))
        offset = means - means.mean(2, keepdim=True)
        variances = (variances + offset.square()).mean(2, keepdim=True)  # of each group
        inverse = (variances + self.eps).rsqrt()
        gain = self.weight.float() * inverse.expand_as(offset).flatten(1)
        bias = self.bias.float() + gain * offset.flatten(1)
        if scale is not None and shift is not None:
            gain, bias = gain * (1 + scale.float()), bias * (1 + scale.float()) + shift.float()
        out = torch.addcmul(bias.unsqueeze(1), centred, gain.unsqueeze(1))
        out = F.silu(out, inplace=True) if self.silu else out
        return to_pixels(out.to(h.dtype), h.shape[2:])


def to_tokens(h: Tensor) -> Tensor:
    """`[rows, C, H, W]` to `[rows, H W, C]`: a view, contiguous where `h` is channels last."""
    return h.flatten(2).transpose(1, 2)


def to_pixels(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """`[rows, H W, C]` to `[rows, C, H, W]`: a view, channels last where `tokens` is contiguous."""
    return tokens.transpose(1, 2).unflatten(2, size)
