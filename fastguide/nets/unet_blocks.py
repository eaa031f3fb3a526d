"""The two blocks of the U-Net: residual with the embedding, and attention over pixels."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.nets.attention import SelfAttention
from fastguide.nets.norm import GroupNorm, to_pixels, to_tokens
from fastguide.staging.contract import PLAIN, Routing
from fastguide.staging.shuffled import shuffled
from fastguide.staging.timed import timed


class UNetState(NamedTuple):
    """What flows from stage to stage; all of it is batch-first."""

    h: Tensor  # [rows, C, H, W], channels last in memory
    embedding: Tensor  # [rows, E]: time and condition, after their SiLU
    skips: tuple[Tensor, ...]  # what the first half keeps for the second
    raw: Tensor | None = None  # the embedding before its SiLU, once it has the condition


class Residual(nn.Module):
    """`x + conv(silu(AdaGN(conv(silu(GN(x))))))`, on both paths at another resolution where asked
    (BigGAN; Brock et al. 2019).

    Args:
        inputs, outputs: channels; where they differ, x passes a 1x1 convolution.
        embedding: the width of the embedding, which scales and shifts the second norm.
        skip: "keep" lays what the block is given aside for the second half; "take" concatenates
            what was laid aside last, whose channels `inputs` counts.
        resample: "down" averages 2x2 pixels, "up" repeats them.
    """

    name = ""  # of the layer, where guidance can reach it

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        groups: int,
        skip: Literal["keep", "take", ""] = "",
        resample: Literal["down", "up", ""] = "",
    ) -> None:
        super().__init__()
        self.skip, self.resample = skip, resample
        self.norm_in = GroupNorm(inputs, groups)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm_out = GroupNorm(outputs, groups)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.match = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, state: UNetState, cond: Any = None, routing: Routing = PLAIN) -> UNetState:
        """One stage."""
        x, embedding, skips = state.h, self._embedding(state, routing), state.skips
        if self.skip == "keep":
            skips = (*skips, x)
        elif self.skip == "take":
            x, skips = torch.cat([x, skips[-1]], 1), skips[:-1]
        h = self.conv_in(self._resampled(self.norm_in(x)))
        scale, shift = self.modulation(embedding).chunk(2, 1)
        h = self.conv_out(self.norm_out(h, scale, shift))
        return state._replace(h=self.match(self._resampled(x)) + h, skips=skips)

    def _embedding(self, state: UNetState, routing: Routing) -> Tensor:
        """The state's, or where `routing` perturbs this block's, that after its SiLU."""
        if state.raw is None:
            return state.embedding
        noisy = timed(state.raw, self.name, routing)
        return state.embedding if noisy is state.raw else F.silu(noisy)

    def _resampled(self, h: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(h, 2)
        return F.interpolate(h, scale_factor=2.0, mode="nearest") if self.resample == "up" else h


class PixelAttention(nn.Module):
    """`x + attention(GN(x))` between the pixels of a feature map."""

    def __init__(self, name: str, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.name = name
        self.norm = GroupNorm(channels, groups, silu=False)
        self.attention = SelfAttention(name, channels, heads)

    def forward(self, state: UNetState, cond: Any = None, routing: Routing = PLAIN) -> UNetState:
        """One stage."""
        size = (state.h.shape[2], state.h.shape[3])
        tokens = shuffled(to_tokens(state.h), self.name, routing)
        normal = to_tokens(self.norm(to_pixels(tokens, size)))
        tokens = tokens + self.attention(normal, size, routing)
        return state._replace(h=to_pixels(tokens, size))
