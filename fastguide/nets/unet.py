"""The U-Net of ADM (Dhariwal and Nichol 2021) in stages, with or without a learned variance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.nets.embedding import time_embedding
from fastguide.nets.norm import GroupNorm
from fastguide.nets.timed import timed
from fastguide.nets.unet_blocks import PixelAttention, Residual, UNetState
from fastguide.staged import PLAIN, TIME, Routing, Stage, run_stages


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
        _check(self.config)
        self.channels, self.classes, self.variance = channels, classes, variance
        self.width, self.levels, self.time_scale = width, len(multipliers), time_scale
        self._build(multipliers, res_blocks, attention, head_channels, groups)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.initialise()
        for name, parts in self._parts():
            for kind, part in parts.items():
                if isinstance(part, Residual):
                    part.name = f"{name}.{kind}"

    def _build(
        self,
        multipliers: Sequence[int],
        res_blocks: int,
        attention: Sequence[int],
        head_channels: int,
        groups: int,
    ) -> None:
        embedding = 4 * self.width
        self.time = nn.Sequential(
            nn.Linear(self.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.labels = nn.Embedding(self.classes + 1, embedding) if self.classes else None

        def parts(name: str, level: int, residual: Residual) -> nn.ModuleDict:
            found: dict[str, nn.Module] = {"residual": residual}
            if 2**level in attention:
                now = self.width * multipliers[level]
                found["attention"] = PixelAttention(name, now, now // head_channels, groups)
            return nn.ModuleDict(found)

        now = self.width * multipliers[0]
        kept = [now]
        self.input = nn.ModuleList([nn.Conv2d(self.channels, now, 3, padding=1)])
        for level, multiplier in enumerate(multipliers):
            if level:
                down = Residual(now, now, embedding, groups, "keep", "down")
                self.input.append(nn.ModuleDict({"down": down}))
                kept.append(now)
            for _ in range(res_blocks):
                residual = Residual(now, self.width * multiplier, embedding, groups, "keep")
                self.input.append(parts(f"input.{len(self.input)}", level, residual))
                now = self.width * multiplier
                kept.append(now)
        self.bottom = nn.ModuleDict(
            {
                "first": Residual(now, now, embedding, groups, "keep"),
                "attention": PixelAttention("middle", now, now // head_channels, groups),
                "last": Residual(now, now, embedding, groups),
            }
        )
        self.output = nn.ModuleList()
        for level in reversed(range(self.levels)):
            for _ in range(res_blocks + 1):
                to = self.width * multipliers[level]
                residual = Residual(now + kept.pop(), to, embedding, groups, "take")
                self.output.append(parts(f"output.{len(self.output)}", level, residual))
                now = to
            if level:
                self.output[-1]["up"] = Residual(now, now, embedding, groups, resample="up")  # type: ignore[operator]
        self.norm = GroupNorm(now, groups)
        self.out = nn.Conv2d(now, self.channels * (2 if self.variance else 1), 3, padding=1)

    def initialise(self) -> None:
        """Draw new weights from torch's default generator."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.get_parameter("bias"))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, GroupNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.out.weight)
        for module in self.modules():  # blocks start as the identity, or as their resampling
            if isinstance(module, Residual):
                nn.init.zeros_(module.conv_out.weight)
            elif isinstance(module, PixelAttention):
                nn.init.zeros_(module.attention.proj.get_parameter("weight"))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the network can take images of `shape` = (C, H, W)."""
        if len(shape) != 3 or shape[0] != self.channels:
            raise ValueError(f"shape is {shape}, but it should be ({self.channels}, H, W)")
        factor = 2 ** (self.levels - 1)
        if any(side < factor or side % factor for side in shape[1:]):
            raise ValueError(
                f"shape is {shape}, but H and W should be multiples of {factor}, "
                f"for {self.levels} levels"
            )

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
        dtype = self.out.weight.dtype
        h = self.input[0](x.to(dtype))
        time = self.time(time_embedding(t * self.time_scale, self.width).to(dtype))
        return UNetState(h, time, ())

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


def _check(config: dict[str, Any]) -> None:
    for name in ("channels", "width", "res_blocks", "head_channels", "groups"):
        if int(config[name]) < 1:
            raise ValueError(f"{name} is {config[name]}, but it should be 1 or more")
    width, multipliers, groups = config["width"], config["multipliers"], config["groups"]
    if width % groups or width % 2:
        raise ValueError(
            f"width is {width}, but it should be even and a multiple of groups ({groups})"
        )
    if not multipliers or any(m != int(m) or m < 1 for m in multipliers):
        raise ValueError(
            f"multipliers is {multipliers}, but it should be whole numbers, 1 or more, one a level"
        )
    factors = [2**level for level in range(len(multipliers))]
    for factor in config["attention"]:
        if factor not in factors:
            raise ValueError(
                f"attention has {factor}, but it should be among {factors}: how many times smaller "
                "a level's feature maps are"
            )
    attended = [multipliers[factors.index(f)] for f in config["attention"]] + [multipliers[-1]]
    for multiplier in attended:
        if width * multiplier % config["head_channels"]:
            raise ValueError(
                f"head_channels is {config['head_channels']}, but it should divide the "
                f"{width * multiplier} channels of an attention layer"
            )
    if config["classes"] < 0:
        raise ValueError(
            f"classes is {config['classes']}, but it should be 0 (unconditional) or more"
        )
