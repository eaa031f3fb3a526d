"""A diffusion transformer (Peebles and Xie 2023) in stages, with one or two prediction heads."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.nets.attention import SelfAttention
from fastguide.nets.draw import draw_weights
from fastguide.nets.embedding import position_embedding, time_embedding
from fastguide.nets.linear import joined
from fastguide.staging.contract import PLAIN, TIME, Routing, Stage, run_stages
from fastguide.staging.shuffled import shuffled
from fastguide.staging.timed import timed


class DiTState(NamedTuple):
    """What flows from stage to stage; the tensors are batch-first, `grid` is shared by all rows."""

    tokens: Tensor  # [B, h w, width]
    embedding: Tensor  # [B, parts, width / parts]: time and conditions, before their SiLU
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
        split: whether the second head is kept from the condition by construction. The channels of
            a token are then two halves, each with its own embedding; the condition enters the
            second half, nothing flows from the second half to the first, and the second head reads
            the first alone. The first head reads both. One pass costs what it costs without.
        time_scale: multiplies `t` before its sinusoidal embedding, which resolves steps of about 1.
    """

    variance: bool = False

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
        split: bool = False,
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
        parts = 2 if split else 1
        if width % attention_heads or width % (4 * parts):
            raise ValueError(
                f"width is {width}, but it should be a multiple of {4 * parts} and of "
                f"attention_heads ({attention_heads})"
            )
        if classes < 0:
            raise ValueError(f"classes is {classes}, but it should be 0 (unconditional) or more")
        if negative and (heads != 2 or classes == 0):
            raise ValueError(
                f"negative is True with heads {heads} and classes {classes}, "
                "but a negative condition needs heads=2 and classes"
            )
        if split and (heads != 2 or classes == 0 or attention_heads % 2):
            raise ValueError(
                f"split is True with heads {heads}, classes {classes} and attention_heads "
                f"{attention_heads}, but it needs heads=2, classes and an even attention_heads"
            )
        self.channels, self.patch, self.width = channels, patch, width
        self.classes, self.heads, self.negative = classes, heads, negative
        self.split, self.parts, self.time_scale = split, parts, time_scale
        pixels, embedding = channels * patch * patch, width // parts
        self.patches = nn.Linear(pixels, width)
        self.time = nn.Sequential(
            nn.Linear(256, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.labels = nn.Embedding(classes + 1, embedding) if classes else None
        self.negative_labels = nn.Embedding(classes + 1, embedding) if negative else None
        self.block_names = tuple(f"blocks.{index}" for index in range(depth))
        self.blocks = nn.ModuleList(
            Block(name, width, attention_heads, mlp_ratio, parts) for name in self.block_names
        )
        self.modulation = Modulation(width, 2, parts)
        self.out = nn.Linear(width, pixels if split else heads * pixels)
        self.second_out = nn.Linear(width // 2, pixels) if split else None
        self.initialise()

    def initialise(self) -> None:
        """Draw new weights from torch's default generator."""
        draw_weights(self)
        nn.init.zeros_(self.out.weight)
        if self.second_out is not None:
            nn.init.zeros_(self.second_out.weight)
        for module in self.modules():
            if isinstance(module, Modulation):  # adaLN-Zero: blocks start as the identity
                for part in module.parts:
                    assert isinstance(part, nn.Linear)
                    nn.init.zeros_(part.weight)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the network can take images of `shape` = (C, H, W)."""
        if len(shape) != 3 or shape[0] != self.channels:
            raise ValueError(f"shape is {shape}, but it should be ({self.channels}, H, W)")
        if any(side < self.patch or side % self.patch for side in shape[1:]):
            raise ValueError(
                f"shape is {shape}, but H and W should be multiples of the patch size {self.patch}"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Patches, condition, blocks, head (`fastguide.staging.contract`)."""
        blocks = (
            Stage(name, block, (name,), timed=True, skippable=True)
            for name, block in zip(self.block_names, self.blocks, strict=True)
        )
        return (
            Stage("patches", self.embed),
            Stage("condition", self.condition, (TIME,), cond=True, timed=True),
            *blocks,
            Stage("head", self.head),
        )

    @property
    def middle(self) -> tuple[str, ...]:
        """The block halfway."""
        return (self.block_names[len(self.block_names) // 2],)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Predict from `x` [B, C, H, W] at times `t` [B] under `cond` (None: the null class)."""
        return run_stages(self, x, t, cond)

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> DiTState:
        """Patches to tokens, time to an embedding."""
        x, t = inputs
        grid = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        tokens = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        dtype = self.patches.weight.dtype
        tokens = self.patches(tokens.to(dtype))
        position = position_embedding(grid, self.width // self.parts, x.device)
        tokens = tokens + position.repeat(1, self.parts).to(tokens.dtype)
        time = self.time(time_embedding(t * self.time_scale).to(dtype))
        return DiTState(tokens, torch.stack([time] * self.parts, 1), grid)

    def condition(self, state: DiTState, cond: Any = None, routing: Routing = PLAIN) -> DiTState:
        """Add the conditions to the embedding; the last part is the one that sees the first."""
        embedding = state.embedding
        if self.labels is not None:
            batch, device = embedding.shape[0], embedding.device
            first, second = cond if self.negative and cond is not None else (cond, None)
            added = [torch.zeros_like(embedding[:, 0])] * self.parts
            added[-1] = self.labels(self._or_null(first, batch, device))
            if self.negative_labels is not None:
                added[0] = added[0] + self.negative_labels(self._or_null(second, batch, device))
            embedding = embedding + torch.stack(added, 1)
        return state._replace(embedding=timed(embedding, TIME, routing))

    def _or_null(self, labels: Tensor | None, batch: int, device: torch.device) -> Tensor:
        return torch.full((batch,), self.classes, device=device) if labels is None else labels

    def head(self, state: DiTState, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Tokens to pixels."""
        shift, scale = self.modulation(state.embedding)
        tokens = modulate(state.tokens, shift, scale, self.parts)
        patches = self.out(tokens)
        if self.second_out is not None:
            second = self.second_out(tokens[..., : self.width // 2])
            patches = torch.cat([patches, second], -1)
        pixels = patches.transpose(1, 2).unflatten(2, state.grid)
        return F.pixel_shuffle(pixels, self.patch)


class Block(nn.Module):
    """Self-attention and MLP, each modulated and gated by the embedding (adaLN-Zero)."""

    def __init__(
        self, name: str, width: int, attention_heads: int, mlp_ratio: int, parts: int = 1
    ) -> None:
        super().__init__()
        self.name, self.parts = name, parts
        self.modulation = Modulation(width, 6, parts)
        self.attention = SelfAttention(self.name, width, attention_heads, parts)
        self.up = joined(width, mlp_ratio * width, parts=parts)
        self.down = joined(mlp_ratio * width, width, parts=parts)

    def forward(self, state: DiTState, cond: Any = None, routing: Routing = PLAIN) -> DiTState:
        """One stage."""
        parts = self.parts
        tokens = shuffled(state.tokens, self.name, routing)
        embedding = timed(state.embedding, self.name, routing)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(embedding)
        normal = modulate(tokens, shift_a, scale_a, parts)
        tokens = tokens + gate_a * self.attention(normal, state.grid, routing)
        hidden = self.up(modulate(tokens, shift_m, scale_m, parts))
        hidden = F.gelu(hidden, approximate="tanh")
        return state._replace(tokens=tokens + gate_m * self.down(hidden))


class Modulation(nn.Module):
    """`count` vectors `[B, 1, width]` from the embedding; each part of them from its own."""

    def __init__(self, width: int, count: int, parts: int) -> None:
        super().__init__()
        self.count = count
        self.parts = nn.ModuleList(
            nn.Linear(width // parts, count * width // parts) for _ in range(parts)
        )

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        """From `[B, parts, width / parts]`."""
        embedding = F.silu(embedding)
        vectors = [
            part(embedding[:, i]).unflatten(-1, (self.count, -1))
            for i, part in enumerate(self.parts)
        ]
        return torch.cat(vectors, -1).unsqueeze(1).unbind(2)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor, parts: int = 1) -> Tensor:
    """LayerNorm without affine, of each part alone, then `(1 + scale) x + shift`."""
    split = tokens.unflatten(-1, (parts, -1))
    normal = F.layer_norm(split, split.shape[-1:], eps=1e-6).flatten(-2)
    return normal * (1 + scale) + shift
