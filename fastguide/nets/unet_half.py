"""The first half of the U-Net: what the noisy-image encoder is made of as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from fastguide.nets.draw import draw_weights
from fastguide.nets.embedding import time_embedding
from fastguide.nets.unet_blocks import PixelAttention, Residual, UNetState


class Half(NamedTuple):
    """Modules, and the channels that come out of them."""

    time: nn.Sequential  # the embedding of the time, of `4 width` channels
    input: nn.ModuleList  # the first convolution, then the blocks
    bottom: nn.ModuleDict
    outputs: int
    kept: list[int]  # channels of what the blocks lay aside, in order


def first_half(
    channels: int,
    width: int,
    multipliers: Sequence[int],
    res_blocks: int,
    attention: Sequence[int],
    head_channels: int,
    groups: int,
    skip: Literal["keep", ""],
) -> Half:
    """Build it, for arguments as `UNet` has them; `skip` is that of its residual blocks."""
    embedding = 4 * width
    time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
    now = width * multipliers[0]
    kept = [now]
    blocks = nn.ModuleList([nn.Conv2d(channels, now, 3, padding=1)])
    for level, multiplier in enumerate(multipliers):
        if level:
            down = Residual(now, now, embedding, groups, skip, "down")
            blocks.append(nn.ModuleDict({"down": down}))
            kept.append(now)
        for _ in range(res_blocks):
            residual = Residual(now, width * multiplier, embedding, groups, skip)
            now = width * multiplier
            attends = now // head_channels if 2**level in attention else 0
            blocks.append(block(f"input.{len(blocks)}", residual, now, attends, groups))
            kept.append(now)
    bottom = nn.ModuleDict(
        {
            "first": Residual(now, now, embedding, groups, skip),
            "attention": PixelAttention("middle", now, now // head_channels, groups),
            "last": Residual(now, now, embedding, groups),
        }
    )
    return Half(time, blocks, bottom, now, kept)


def block(name: str, residual: Residual, channels: int, heads: int, groups: int) -> nn.ModuleDict:
    """A residual block, and attention of `heads` heads after it, if any."""
    parts: dict[str, nn.Module] = {"residual": residual}
    if heads:
        parts["attention"] = PixelAttention(name, channels, heads, groups)
    return nn.ModuleDict(parts)


def embed(first: nn.Conv2d, time: nn.Sequential, x: Tensor, t: Tensor, width: int) -> UNetState:
    """The first convolution of `x` `[B, C, H, W]`; times `t` `[B]`, scaled, to an embedding."""
    dtype = first.weight.dtype
    return UNetState(first(x.to(dtype)), time(time_embedding(t, width).to(dtype)), ())


def initialise(net: nn.Module) -> None:
    """Draw new weights from torch's default generator; blocks start as the identity, or as their
    resampling.
    """
    draw_weights(net)
    for module in net.modules():
        if isinstance(module, Residual):
            nn.init.zeros_(module.conv_out.weight)
        elif isinstance(module, PixelAttention):
            nn.init.zeros_(module.attention.proj.get_parameter("weight"))


def check_shape(shape: tuple[int, ...], channels: int, levels: int) -> None:
    """Raise ValueError unless `levels` levels can take images of `shape` = (C, H, W)."""
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(f"shape is {shape}, but it should be ({channels}, H, W)")
    factor = 2 ** (levels - 1)
    if any(side < factor or side % factor for side in shape[1:]):
        raise ValueError(
            f"shape is {shape}, but H and W should be multiples of {factor}, for {levels} levels"
        )


def check_config(config: dict[str, Any]) -> None:
    """Raise ValueError unless `first_half` can be built of it."""
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
