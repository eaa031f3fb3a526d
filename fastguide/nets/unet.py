"""The U-Net of ADM (Dhariwal and Nichol 2021) in stages, with or without a learned variance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.nets.norm import GroupNorm
from fastguide.nets.unet_blocks import PixelAttention, Residual, UNetState
from fastguide.nets.unet_half import block, check_config, check_shape, embed, first_half, initialise
from fastguide.staging.contract import PLAIN, TIME, Routing, Stage, run_stages
from fastguide.staging.timed import timed


class UNet(nn.Module):
    """ADM's U-Net: `net(x, t, cond)` -> prediction `[B, C, H, W]`, or `[B, 2 C, H, W]`.

    It computes in channels-last memory, where pixels and tokens are two views of one tensor.

    Args:
        channels: image channels C; `x` is `[B, C, H, W]`, H and W any multiples of
            2^(len(multipliers) - 1).
        width, multipliers: level i has `width * multipliers[i]` channels at 1 / 2^i of the size.
        res_blocks: residual blocks per level in the first half; the second has one more.
        attention: the levels with attention, by how many times smaller their feature maps are: at
            32, 16 and 8 of 256 pixels it is (8, 16, 32). The middle always has attention.
        head_channels: channels per attention head.
        classes: number of classes, or 0 for an unconditional network. `cond` is an int64 tensor
            `[B]` with values 0 ... classes; the value `classes` is the null class.
        variance: whether a second C channels say the variance (`Model.variance`).
        groups: of the group norms.
        time_scale: multiplies `t` before its sinusoidal embedding, which resolves steps of about 1.
    """

    heads: int = 1
    negative: bool = False
    split: bool = False

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        res_blocks: int = 2,
        attention: Sequence[int] = (2, 4),
        head_channels: int = 64,
        classes: int = 10,
        variance: bool = False,
        groups: int = 32,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        multipliers, attention = tuple(multipliers), tuple(attention)
        self.config: dict[str, Any] = {
            k: v for k, v in locals().items() if k not in ("self", "__class__")
        }
        check_config(self.config)
        if classes < 0:
            raise ValueError(f"classes is {classes}, but it should be 0 (unconditional) or more")
        self.channels, self.classes, self.variance = channels, classes, variance
        self.width, self.levels, self.time_scale = width, len(multipliers), time_scale
        half = first_half(
            channels, width, multipliers, res_blocks, attention, head_channels, groups, "keep"
        )
        embedding, now, kept = 4 * width, half.outputs, list(half.kept)
        self.time = half.time
        self.labels = nn.Embedding(classes + 1, embedding) if classes else None
        self.input, self.bottom = half.input, half.bottom
        self.output = nn.ModuleList()
        for level in reversed(range(self.levels)):
            to = width * multipliers[level]
            heads = to // head_channels if 2**level in attention else 0
            for _ in range(res_blocks + 1):
                residual = Residual(now + kept.pop(), to, embedding, groups, "take")
                self.output.append(block(f"output.{len(self.output)}", residual, to, heads, groups))
                now = to
            if level:
                self.output[-1]["up"] = Residual(now, now, embedding, groups, resample="up")  # type: ignore[operator]
        self.norm = GroupNorm(now, groups)
        self.out = nn.Conv2d(now, channels * (2 if variance else 1), 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.initialise()
        for name, parts in self._parts():
            for kind, part in parts.items():
                if isinstance(part, Residual):
                    part.name = f"{name}.{kind}"

    def initialise(self) -> None:
        """Draw new weights from torch's default generator."""
        initialise(self)
        nn.init.zeros_(self.out.weight)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the network can take images of `shape` = (C, H, W)."""
        check_shape(shape, self.channels, self.levels)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """First convolution, condition, every block and every attention layer, head."""
        blocks = (
            Stage(f"{name}.{kind}", part, (name,), skippable=True)
            if isinstance(part, PixelAttention)
            else Stage(f"{name}.{kind}", part, (f"{name}.{kind}",), timed=True, tokens=False)
            for name, parts in self._parts()
            for kind, part in parts.items()
        )
        return (
            Stage("input.0", self.embed),
            Stage("condition", self.condition, (TIME,), cond=True, timed=True),
            *blocks,
            Stage("head", self.head),
        )

    def _parts(self) -> Iterator[tuple[str, Any]]:
        for index in range(1, len(self.input)):
            yield f"input.{index}", self.input[index]
        yield "middle", self.bottom
        for index in range(len(self.output)):
            yield f"output.{index}", self.output[index]

    @property
    def middle(self) -> tuple[str, ...]:
        """The attention layer between the halves, and the residual blocks around it."""
        return ("middle.first", "middle", "middle.last")

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Predict from `x` [B, C, H, W] at times `t` [B] under `cond` (None: the null class)."""
        return run_stages(self, x, t, cond)

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> UNetState:
        """The first convolution; time to an embedding."""
        x, t = inputs
        first: Any = self.input[0]
        return embed(first, self.time, x, t * self.time_scale, self.width)

    def condition(self, state: UNetState, cond: Any = None, routing: Routing = PLAIN) -> UNetState:
        """Add the condition to the embedding."""
        embedding = state.embedding
        if self.labels is not None:
            null = torch.full((embedding.shape[0],), self.classes, device=embedding.device)
            embedding = embedding + self.labels(null if cond is None else cond)
        embedding = timed(embedding, TIME, routing)
        return state._replace(embedding=F.silu(embedding), raw=embedding)

    def head(self, state: UNetState, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Features to pixels."""
        return self.out(self.norm(state.h)).contiguous()
