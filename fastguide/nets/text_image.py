"""A pair of encoders, of noisy images and of short texts, into one space (CLIP, Radford et al.
2021; trained on noised images as in GLIDE, Nichol et al. 2021, section 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.nets.draw import draw_weights
from fastguide.nets.encoder import Encoder
from fastguide.nets.linear import Joined

PAD = 256  # after the 256 bytes
LIMIT = math.log(100.0)  # of the logit scale's logarithm


class TextImageNet(nn.Module):
    """`net(x, t, texts)` -> unit embeddings (of images, of texts), each `[B, outputs]`.

    Args:
        outputs: dimensions of the common space.
        text_width, text_depth, text_heads: of the text tower.
        text_length: most bytes of a text.
        others: of the image tower, as `Encoder` has them.
    """

    def __init__(
        self,
        outputs: int = 64,
        channels: int = 1,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 4),
        res_blocks: int = 1,
        attention: Sequence[int] = (4,),
        head_channels: int = 32,
        groups: int = 8,
        time_scale: float = 1000.0,
        text_width: int = 64,
        text_depth: int = 2,
        text_heads: int = 4,
        text_length: int = 64,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            k: v for k, v in locals().items() if k not in ("self", "__class__")
        }
        self.image_tower = Encoder(
            outputs,
            channels,
            width,
            multipliers,
            res_blocks,
            attention,
            head_channels,
            groups,
            time_scale,
        )
        self.config |= {
            name: self.image_tower.config[name] for name in ("multipliers", "attention")
        }
        self.text_tower = TextTower(outputs, text_width, text_depth, text_heads, text_length)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.initialise()

    def initialise(self) -> None:
        """Draw new weights from torch's default generator; the scale starts at 1 / 0.07."""
        self.image_tower.initialise()
        self.text_tower.initialise()
        nn.init.constant_(self.log_scale, -math.log(0.07))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless the network can take images of `shape` = (C, H, W)."""
        self.image_tower.check_shape(shape)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by to be logits; at most 100."""
        return self.log_scale.clamp(max=LIMIT).exp()

    def image(self, x: Tensor, t: Tensor) -> Tensor:
        """Unit embeddings of `x` `[B, C, H, W]` at times `t` `[B]`, as `Encoder` is given them."""
        return F.normalize(self.image_tower(x, t), dim=1)

    def text(self, tokens: Tensor) -> Tensor:
        """Unit embeddings of `tokens` `[B, N]`."""
        return F.normalize(self.text_tower(tokens), dim=1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """Both; `cond` are the tokens."""
        return self.image(x, t), self.text(cond)


class TextTower(nn.Module):
    """A small transformer over bytes `[B, N]`, averaged over those that are not PAD: `[B,
    outputs]`.
    """

    def __init__(self, outputs: int, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        for name, value in (("text_width", width), ("text_depth", depth), ("text_length", length)):
            if value < 1:
                raise ValueError(f"{name} is {value}, but it should be 1 or more")
        if heads < 1 or width % heads:
            raise ValueError(
                f"text_heads is {heads}, but it should divide text_width, which is {width}"
            )
        self.length = length
        self.bytes = nn.Embedding(PAD + 1, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, outputs)

    def initialise(self) -> None:
        """Draw new weights from torch's default generator."""
        draw_weights(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed `tokens`."""
        real = tokens != PAD  # [B, N]
        h = self.bytes(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            h = block(h, real)
        weights = real.to(h.dtype).unsqueeze(2)
        return self.out((self.norm(h) * weights).sum(1) / weights.sum(1))


class TextBlock(nn.Module):
    """Attention and MLP, each after a layer norm, on `[B, N, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = Joined(width, width, times=3), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        """`h`; no token attends where `real` `[B, N]` is False."""
        qkv = self.qkv(self.norm_attention(h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        h = h + self.proj(mixed.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.norm_mlp(h))))


def text_tokens(texts: Sequence[str], length: int, fill: bool = False) -> Tensor:
    """The bytes of `texts` in UTF-8, lower case, as int64 `[B, N]`; shorter ones end in PAD.

    Args:
        length: most bytes of a text.
        fill: whether N is `length`, and not that of the longest.
    """
    if not texts:
        raise ValueError("texts is empty, but it should hold one text or more")
    rows = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{i}] is {text!r}, but it should be a string")
        row = list(text.strip().lower().encode())
        if not 1 <= len(row) <= length:
            raise ValueError(
                f"texts[{i}] is {text!r}, of {len(row)} bytes, but it should have 1 to {length}"
            )
        rows.append(row)
    wide = length if fill else max(map(len, rows))
    return torch.tensor([row + [PAD] * (wide - len(row)) for row in rows])
