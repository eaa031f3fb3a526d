"""A diffusion transformer (Peebles and Xie 2023) in stages, with one or two prediction heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DiTState(NamedTuple):
    """What flows from stage to stage; the tensors are batch-first, `grid` is shared by all rows."""

    tokens: Tensor  # [B, h w, width]
    embedding: Tensor  # [B, width]: time and conditions
    grid: tuple[int, int]


class DiT(nn.Module):
    """DiT with adaLN-Zero: `net(x, t, cond)` -> prediction `[B, heads * channels, H, W]`.

    Args:
        channels: image channels C; `x` is `[B, C, H, W]`, H and W any multiples of `patch`.
        patch, width, depth, attention_heads, mlp_ratio: the transformer's shape.
        classes: number of classes, or 0 for an unconditional network. `cond` is an int64 tensor
            `[B]` with values 0 ... classes; the value `classes` is the null class.
        heads: predictions per pass; head k is the channel slice `[:, k C:(k + 1) C]`.
        negative: whether the network takes a second, negative condition: `cond` is then a pair
            `(labels, negative_labels)`, and the second head predicts for the negative one.
        time_scale: multiplies `t` before its sinusoidal embedding, which resolves steps of about 1.
    """

    def __init__(
        self,
        channels: int = 1,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        attention_heads: int = 6,
        mlp_ratio: int = 4,
        classes: int = 10,
        heads: int = 1,
        negative: bool = False,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            k: v for k, v in locals().items() if k not in ("self", "__class__")
        }
        positive = ("channels", "patch", "width", "depth", "attention_heads", "mlp_ratio", "heads")
        for name in positive:
            if int(self.config[name]) < 1:
                raise ValueError(f"{name} is {self.config[name]}, but it should be 1 or more")
        if width % attention_heads or width % 4:
            raise ValueError(
                f"width is {width}, but it should be a multiple of 4 and of attention_heads "
                f"({attention_heads})"
            )
        if classes < 0:
            raise ValueError(f"classes is {classes}, but it should be 0 (unconditional) or more")
        if negative and (heads != 2 or classes == 0):
            raise ValueError(
                f"negative is True with heads {heads} and classes {classes}, "
                "but a negative condition needs heads=2 and classes"
            )
        self.channels, self.patch, self.width = channels, patch, width
        self.classes, self.heads, self.negative = classes, heads, negative
        self.time_scale = time_scale
        self.patches = nn.Linear(channels * patch * patch, width)
        self.time = nn.Sequential(
            nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.labels = nn.Embedding(classes + 1, width) if classes else None
        self.negative_labels = nn.Embedding(classes + 1, width) if negative else None
        self.blocks = nn.ModuleList(Block(width, attention_heads, mlp_ratio) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, heads * channels * patch * patch)
        self.initialise()

    def initialise(self) -> None:
        """Draw new weights from torch's default generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.out.weight)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.zeros_(block.modulation.weight)  # adaLN-Zero: starts as the identity

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the network can take images of `shape` = (C, H, W)."""
        if len(shape) != 3 or shape[0] != self.channels:
            raise ValueError(f"shape is {shape}, but it should be ({self.channels}, H, W)")
        if any(side < self.patch or side % self.patch for side in shape[1:]):
            raise ValueError(
                f"shape is {shape}, but H and W should be multiples of the patch size {self.patch}"
            )

    @property
    def stages(self) -> tuple[Callable[..., Any], ...]:
        """embed(x, t, cond) -> state, one block(state) -> state each, head(state) -> prediction."""
        return (self.embed, *self.blocks, self.head)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Predict from `x` [B, C, H, W] at times `t` [B] under `cond` (None: the null class)."""
        state = self.embed(x, t, cond)
        for block in self.blocks:
            state = block(state)
        return self.head(state)

    def embed(self, x: Tensor, t: Tensor, cond: Any = None) -> DiTState:
        """The first stage: patches to tokens, time and conditions to one embedding."""
        batch, _, height, width = x.shape
        grid = (height // self.patch, width // self.patch)
        tokens = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        dtype = self.patches.weight.dtype
        tokens = self.patches(tokens.to(dtype))
        tokens = tokens + position_embedding(grid, self.width, x.device).to(tokens.dtype)
        embedding = self.time(time_embedding(t * self.time_scale).to(dtype))
        if self.labels is not None:
            first, second = cond if self.negative and cond is not None else (cond, None)
            embedding = embedding + self.labels(self._or_null(first, batch, x.device))
            if self.negative_labels is not None:
                second = self._or_null(second, batch, x.device)
                embedding = embedding + self.negative_labels(second)
        return DiTState(tokens, F.silu(embedding), grid)

    def _or_null(self, labels: Tensor | None, batch: int, device: torch.device) -> Tensor:
        return torch.full((batch,), self.classes, device=device) if labels is None else labels

    def head(self, state: DiTState) -> Tensor:
        """The last stage: tokens to pixels."""
        shift, scale = self.modulation(state.embedding).unsqueeze(1).chunk(2, dim=-1)
        tokens = self.out(modulate(state.tokens, shift, scale))
        pixels = tokens.transpose(1, 2).unflatten(2, state.grid)
        return F.pixel_shuffle(pixels, self.patch)


class Block(nn.Module):
    """Self-attention and MLP, each modulated and gated by the embedding (adaLN-Zero)."""

    def __init__(self, width: int, attention_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attention_heads = attention_heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, mlp_ratio * width)
        self.down = nn.Linear(mlp_ratio * width, width)

    def forward(self, state: DiTState) -> DiTState:
        """One stage."""
        tokens = state.tokens
        modulation = self.modulation(state.embedding).unsqueeze(1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        tokens = tokens + gate_a * self.attention(modulate(tokens, shift_a, scale_a))
        hidden = F.gelu(self.up(modulate(tokens, shift_m, scale_m)), approximate="tanh")
        return state._replace(tokens=tokens + gate_m * self.down(hidden))

    def attention(self, tokens: Tensor) -> Tensor:
        """Multi-head self-attention on `[B, N, width]`."""
        qkv = self.qkv(tokens).unflatten(-1, (3, self.attention_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


_FREQUENCIES = 256


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine, then `(1 + scale) x + shift`."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def time_embedding(t: Tensor) -> Tensor:
    """Sinusoidal embedding `[B, 256]` in fp32 of times `[B]`."""
    half = _FREQUENCIES // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000.0) / half))
    angles = t.float().unsqueeze(1) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_embedding(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Fixed 2-D sine-cosine embedding `[h w, width]` of a token grid of any size."""
    quarter = width // 4
    rates = torch.exp(torch.arange(quarter, device=device) * (-math.log(10000.0) / quarter))
    rows = torch.arange(grid[0], device=device).unsqueeze(1) * rates
    columns = torch.arange(grid[1], device=device).unsqueeze(1) * rates
    rows = torch.cat([rows.sin(), rows.cos()], 1).unsqueeze(1).expand(*grid, -1)
    columns = torch.cat([columns.sin(), columns.cos()], 1).unsqueeze(0).expand(*grid, -1)
    return torch.cat([rows, columns], 2).flatten(0, 1)
