"""U-Nets of the sizes of Stable Diffusion 1 and XL, with random weights: the same blocks, widths,
depths and cross-attention, for benchmarks without a download (Rombach et al. 2022; Podell et al.
2023). Stages as in `fastguide.staging.contract`.

`net(x, t, cond)`: x `[B, 4, H, W]`, t `[B]` in training steps, cond the text `[B, T, context]`, or
the pair of it and the pooled vector `[B, added]` where the network has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.nets.attention import SelfAttention
from fastguide.nets.embedding import time_embedding
from fastguide.nets.norm import GroupNorm, to_pixels, to_tokens
from fastguide.staging.contract import PLAIN, Routing, Stage, run_stages
from fastguide.staging.shuffled import shuffled


@dataclass(frozen=True)
class Shape:
    """Of a U-Net with transformers.

    Args:
        widths: channels of each level.
        depths: transformer blocks after each residual block of a level; `mid` in the middle.
        context: width of the text.
        head_dim: width of an attention head; None for 8 heads everywhere.
        added: width of the pooled vector, or 0.
        parameters: as published.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    mid: int
    context: int
    head_dim: int | None = None
    added: int = 0
    parameters: float = 0.0
    res_blocks: int = 2

    def heads(self, width: int) -> int:
        """Attention heads at a width."""
        return 8 if self.head_dim is None else width // self.head_dim


SD = Shape((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, parameters=860e6)
SDXL = Shape((320, 640, 1280), (0, 2, 10), 10, 2048, 64, 2816, 2.57e9)
TINY = Shape((32, 64), (1, 2), 1, 24, 16, 40)


class State(NamedTuple):
    """What flows from stage to stage."""

    h: Tensor  # [rows, C, H, W], channels last; inside a transformer tokens [rows, H W, C]
    embedding: Tensor  # [rows, E]
    skips: tuple[Tensor, ...] = ()
    residual: Tensor | None = None  # what the transformer was given


class Residual(nn.Module):
    """`match(x) + conv(silu(GN(conv(silu(GN(x))) + linear(embedding))))`; `takes` what was laid
    aside last beside x.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, takes: bool = False) -> None:
        super().__init__()
        self.takes = takes
        self.norm_in = GroupNorm(inputs, 32)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embedding = nn.Linear(embedding, outputs)
        self.norm_out = GroupNorm(outputs, 32)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.match = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, state: State, cond: Any, routing: Routing) -> State:
        """One stage."""
        x, skips = state.h, state.skips
        if self.takes:
            x, skips = torch.cat([x, skips[-1]], 1), skips[:-1]
        h = self.conv_in(self.norm_in(x)) + self.embedding(state.embedding)[:, :, None, None]
        h = self.match(x) + self.conv_out(self.norm_out(h))
        return state._replace(h=h, skips=skips)


class Block(nn.Module):
    """A transformer block: attention to itself, to the text, and a gated feed-forward network."""

    def __init__(self, name: str, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.name, self.heads = name, heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = SelfAttention(name, width, heads)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(context, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def first(self, state: State, cond: Any, routing: Routing) -> State:
        """Tokens attend to tokens."""
        assert state.residual is not None
        grid = (state.residual.shape[2], state.residual.shape[3])
        tokens = shuffled(state.h, self.name, routing)
        return state._replace(h=tokens + self.attention(self.norms[0](tokens), grid, routing))

    def second(self, state: State, cond: Any, routing: Routing) -> State:
        """Tokens attend to the text; feed-forward."""
        tokens, text = state.h, cond[0] if isinstance(cond, tuple) else cond
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(self.norms[1](tokens)), *self.key_value(text).chunk(2, -1))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(seen)
        hidden, gate = self.up(self.norms[2](tokens)).chunk(2, -1)
        return state._replace(h=tokens + self.down(hidden * F.gelu(gate)))


class Transformer(nn.Module):
    """Blocks between two projections, with a residual connection around all of it."""

    def __init__(self, name: str, width: int, depth: int, shape: Shape) -> None:
        super().__init__()
        self.name = name
        self.norm = GroupNorm(width, 32, silu=False)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            Block(f"{name}.{i}", width, shape.heads(width), shape.context) for i in range(depth)
        )

    def enter(self, state: State, cond: Any, routing: Routing) -> State:
        """Pixels to tokens."""
        return state._replace(h=self.proj_in(to_tokens(self.norm(state.h))), residual=state.h)

    def leave(self, state: State, cond: Any, routing: Routing) -> State:
        """Tokens to pixels."""
        assert state.residual is not None
        h = to_pixels(self.proj_out(state.h), state.residual.shape[2:])
        return state._replace(h=h + state.residual, residual=None)

    def stages(self) -> Iterator[Stage]:
        """In, two for each block, out."""
        yield Stage(f"{self.name}.in", self.enter)
        for block in self.blocks:
            assert isinstance(block, Block)
            yield Stage(block.name, block.first, (block.name,), skippable=True)
            yield Stage(f"{block.name}.text", block.second, cond=True)
        yield Stage(f"{self.name}.out", self.leave)


class TextUNet(nn.Module):
    """The U-Net of a `Shape`; `outputs` times 4 channels come out."""

    def __init__(self, shape: Shape, outputs: int = 1) -> None:
        super().__init__()
        self.shape = shape
        first, embedding = shape.widths[0], 4 * shape.widths[0]

        def perceptron(width: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
            )

        self.time = perceptron(first)
        self.pooled = perceptron(shape.added) if shape.added else None
        self.input = nn.Conv2d(4, first, 3, padding=1)
        self.parts = nn.ModuleList()
        self.kinds: list[str] = []
        kept, now = [first], first

        def add(kind: str, part: nn.Module) -> None:
            self.kinds.append(kind)
            self.parts.append(part)

        levels = list(enumerate(zip(shape.widths, shape.depths, strict=True)))
        for level, (width, depth) in levels:
            for i in range(shape.res_blocks):
                add("residual", Residual(now, width, embedding))
                now = width
                if depth:
                    add("transformer", Transformer(f"down.{level}.{i}", now, depth, shape))
                add("keep", nn.Identity())
                kept.append(now)
            if level + 1 < len(levels):
                add("down", nn.Conv2d(now, now, 3, stride=2, padding=1))
                add("keep", nn.Identity())
                kept.append(now)
        add("residual", Residual(now, now, embedding))
        add("transformer", Transformer("middle", now, shape.mid, shape))
        add("residual", Residual(now, now, embedding))
        for level, (width, depth) in reversed(levels):
            for i in range(shape.res_blocks + 1):
                add("residual", Residual(now + kept.pop(), width, embedding, takes=True))
                now = width
                if depth:
                    add("transformer", Transformer(f"up.{level}.{i}", now, depth, shape))
            if level:
                add("up", nn.Conv2d(now, now, 3, padding=1))
        self.norm = GroupNorm(now, 32)
        self.out = nn.Conv2d(now, 4 * outputs, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every block; of a transformer block, both halves."""
        found = [
            Stage("input", self.embed),
            Stage("condition", self.condition, cond=self.pooled is not None),
        ]
        for i, (kind, part) in enumerate(zip(self.kinds, self.parts, strict=True)):
            if isinstance(part, Transformer):
                found += part.stages()
            elif kind == "residual":
                found.append(Stage(f"{i}.residual", part))
            else:
                found.append(Stage(f"{i}.{kind}", partial(MOVES[kind], part)))
        return (*found, Stage("head", self.head))

    @property
    def middle(self) -> tuple[str, ...]:
        """The attention between the halves."""
        return tuple(f"middle.{i}" for i in range(self.shape.mid))

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """See the file's first lines."""
        return run_stages(self, x, t, cond)

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> State:
        """The first convolution; time to an embedding."""
        x, t = inputs
        dtype = self.input.weight.dtype
        h = self.input(x.to(dtype, memory_format=torch.channels_last))
        embedding = self.time(time_embedding(t, self.shape.widths[0]).to(dtype))
        return State(h, embedding, (h,))

    def condition(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> State:
        """Add the pooled vector to the embedding."""
        embedding = state.embedding
        if self.pooled is not None:
            embedding = embedding + self.pooled(cond[1])
        return state._replace(embedding=F.silu(embedding))

    def head(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Features to the prediction."""
        return self.out(self.norm(state.h)).contiguous()


def keep(part: nn.Module, state: State, cond: Any, routing: Routing) -> State:
    """Lay aside what there is."""
    return state._replace(skips=(*state.skips, state.h))


def down(part: nn.Module, state: State, cond: Any, routing: Routing) -> State:
    """Half the size."""
    return state._replace(h=part(state.h))


def up(part: nn.Module, state: State, cond: Any, routing: Routing) -> State:
    """Twice the size."""
    return state._replace(h=part(F.interpolate(state.h, scale_factor=2.0, mode="nearest")))


MOVES = {"keep": keep, "down": down, "up": up}
