"""A network that judges noisy images: the first half of the U-Net, pooled by attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.nets.embedding import position_embedding
from fastguide.nets.linear import Joined
from fastguide.nets.norm import GroupNorm, to_tokens
from fastguide.nets.unet_half import check_config, check_shape, embed, first_half, initialise


class Encoder(nn.Module):
    """`encoder(x, t)` -> `[B, outputs]`: the logits of classes, or an embedding.

    The noisy classifier of ADM (Dhariwal and Nichol 2021, section 4) and the noised image encoder
    of GLIDE (Nichol et al. 2021, section 2.3) are of this form. `x` and `t` are what the network
    that is guided is given: x scaled by `Prediction.input_scale`, t in that network's units.

    Args:
        outputs: numbers a sample.
        channels, width, multipliers, res_blocks, attention, head_channels, groups, time_scale: as
            `UNet` has them.
    """

    def __init__(
        self,
        outputs: int,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        res_blocks: int = 1,
        attention: Sequence[int] = (4,),
        head_channels: int = 32,
        groups: int = 8,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        multipliers, attention = tuple(multipliers), tuple(attention)
        self.config: dict[str, Any] = {
            k: v for k, v in locals().items() if k not in ("self", "__class__")
        }
        check_config(self.config)
        if outputs < 1:
            raise ValueError(f"outputs is {outputs}, but it should be 1 or more")
        if width * multipliers[-1] % 4:
            raise ValueError(
                f"width is {width}, but with multipliers {multipliers} it should give the last "
                "level a multiple of 4 channels"
            )
        self.outputs, self.channels = outputs, channels
        self.width, self.levels, self.time_scale = width, len(multipliers), time_scale
        half = first_half(
            channels, width, multipliers, res_blocks, attention, head_channels, groups, ""
        )
        self.time, self.input, self.bottom = half.time, half.input, half.bottom
        self.norm = GroupNorm(half.outputs, groups)
        self.pool = AttentionPool(half.outputs, half.outputs // head_channels)
        self.out = nn.Linear(half.outputs, outputs)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.initialise()

    def initialise(self) -> None:
        """Draw new weights from torch's default generator."""
        initialise(self)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the network can take images of `shape` = (C, H, W)."""
        check_shape(shape, self.channels, self.levels)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Judge `x` [B, C, H, W] at times `t` [B]; `cond` is for the signature of a network, and
        not read.
        """
        first: Any = self.input[0]
        state = embed(first, self.time, x, t * self.time_scale, self.width)
        state = state._replace(embedding=F.silu(state.embedding))
        for parts in (*self.input[1:], self.bottom):
            for part in parts.values():
                state = part(state)
        return self.out(self.pool(self.norm(state.h)))


class AttentionPool(nn.Module):
    """`[B, C, H, W]` -> `[B, C]`: the attention output of the mean pixel, which attends to itself
    and to all pixels (Radford et al. 2021, section 2.4). Positions are a fixed embedding, so that
    the size is free.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key_value = Joined(channels, channels, times=2)

    def forward(self, h: Tensor) -> Tensor:
        """Pool `h`."""
        size = (h.shape[2], h.shape[3])
        tokens = to_tokens(h)
        position = position_embedding(size, h.shape[1], h.device).to(h.dtype)
        mean = tokens.mean(1, keepdim=True)
        tokens = torch.cat([mean, tokens + position], 1)
        query = self.query(mean).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        return F.scaled_dot_product_attention(query, key, value).flatten(1)
