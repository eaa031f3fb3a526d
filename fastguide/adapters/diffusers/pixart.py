"""PixArtTransformer2DModel and SanaTransformer2DModel in stages.

`cond` is the text `[rows, T, D]`, or a dict of "text" and, where the network has them, "mask"
`[rows, T]`, "resolution" and "aspect_ratio" (PixArt alpha), "guidance" `[rows]` (Sana Sprint).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.adapters.diffusers.attention import (
    Grid,
    Heads,
    attend,
    bias_of,
    blurred,
    by_head,
    by_token,
    key_values,
    project_out,
    routed,
    self_attention,
)
from fastguide.adapters.diffusers.network import (
    Adapted,
    Call,
    block_stages,
    dtype_of,
    patches_to_pixels,
)
from fastguide.staging.contract import PLAIN, TIME, Routing, Segment, Stage
from fastguide.staging.perturbation import BlurredQueries, Identity
from fastguide.staging.shuffled import shuffled
from fastguide.staging.timed import timed


class State(NamedTuple):
    """What flows from stage to stage; `grid` is shared by all rows."""

    tokens: Tensor  # [rows, h w, C]
    time: Tensor  # [rows, 1 or 7, C] of the time alone, then the vectors of all blocks [rows, 6, C]
    embedding: Tensor | None  # [rows, C]
    text: Tensor | None  # [rows, T, C] where keys and values are not known beforehand
    grid: Grid


class PixArt(Adapted):
    """Self-attention, cross-attention and feed-forward in each block, modulated by the time."""

    reads = frozenset({"encoder_hidden_states", "encoder_attention_mask", "added_cond_kwargs"})

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Patches, time, blocks, head."""
        blocks = block_stages(
            "transformer_blocks", self.net.transformer_blocks, self.block, cond=True
        )
        return (
            Stage("pos_embed", self.embed),
            Stage("time", self.condition, (TIME,), cond=True, timed=True),
            *blocks,
            Stage("proj_out", self.head),
        )

    @property
    def single(self) -> Any:
        """The module that makes vectors of the time."""
        return self.net.adaln_single

    @property
    def alone(self) -> bool:
        """Whether nothing is added to the time's embedding."""
        return not self.single.emb.use_additional_conditions

    @property
    def embedders(self) -> tuple[nn.Module, ...]:
        return (self.single.emb.timestep_embedder, self.single.linear)

    def of_times(self, t: Tensor) -> Tensor:
        """The time's part of the embedding `[n, 1, C]`, and where that is all of it the six vectors
        `[n, 6, C]` behind it.
        """
        embedding = self.time(t * self.time_scale)
        whole = embedding.unsqueeze(1)
        return torch.cat([whole, self.vectors(embedding)], 1) if self.alone else whole

    def time(self, t: Tensor) -> Tensor:
        """The embedding of timesteps `[n]`."""
        emb = self.single.emb
        return emb.timestep_embedder(emb.time_proj(t).to(dtype_of(self.net)))

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> State:
        """Patches to tokens."""
        x, t = inputs
        patch = self.net.config.patch_size
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        tokens = self.patches(x.to(dtype_of(self.net)))
        return State(tokens, self.embedded(t), None, None, grid)

    def patches(self, x: Tensor) -> Tensor:
        """Pixels to tokens with their positions."""
        return self.net.pos_embed(x)

    def condition(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> State:
        """The embedding of the time, and the six vectors of all blocks."""
        cond = _as_dict(cond)
        alone, vectors = state.time[:, 0], state.time[:, 1:]
        embedding = timed(alone if self.alone else alone + self.told(cond), TIME, routing)
        if embedding is not alone:
            vectors = self.vectors(embedding)
        text = None if "kv" in cond else self.text(cond["text"])
        return state._replace(time=vectors, embedding=embedding, text=text)

    def vectors(self, embedding: Tensor) -> Tensor:
        """The six vectors of all blocks, `[rows, 6, C]`."""
        return self.single.linear(self.single.silu(embedding)).unflatten(1, (6, -1))

    def told(self, cond: dict[str, Any]) -> Tensor:
        """What is added to the time's embedding: that of resolution and aspect ratio."""
        if "told" in cond:
            return cond["told"]
        emb, parts = self.single.emb, []
        for name in ("resolution", "aspect_ratio"):
            values = cond[name]
            proj = emb.additional_condition_proj(values.flatten()).to(dtype_of(self.net))
            embedded = getattr(emb, f"{name}_embedder")(proj)
            parts.append(embedded.reshape(values.shape[0], -1))
        return torch.cat(parts, 1)

    def text(self, text: Tensor) -> Tensor:
        """The text as cross-attentions read it."""
        text = text.to(dtype_of(self.net))
        project = self.net.caption_projection
        return text if project is None else project(text)

    def block(self, block: Any, name: str, state: State, cond: Any, routing: Routing) -> State:
        """One block."""
        tokens = shuffled(state.tokens, name, routing)
        vectors = (block.scale_shift_table[None] + state.time).chunk(6, dim=1)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = vectors
        normal = block.norm1(tokens) * (1 + scale) + shift
        tokens = tokens + gate * self.attention(block.attn1, name, normal, state.grid, routing)
        tokens = tokens + self.cross(block.attn2, name, tokens, state.text, _as_dict(cond))
        normal = block.norm2(tokens) * (1 + scale_ff) + shift_ff
        return state._replace(
            tokens=tokens + gate_ff * self.feed_forward(block, normal, state.grid)
        )

    def attention(self, attn: Any, name: str, x: Tensor, grid: Grid, routing: Routing) -> Tensor:
        """Self-attention."""
        return self_attention(attn, name, x, grid, routing)

    def feed_forward(self, block: Any, x: Tensor, grid: Grid) -> Tensor:
        """The block's last part."""
        return block.ff(x)

    def cross(
        self, attn: Any, name: str, x: Tensor, text: Tensor | None, cond: dict[str, Any]
    ) -> Tensor:
        """Attention to the text."""
        q = self.queries(attn, x)
        if text is None:
            k, v = cond["kv"][name]
            bias = cond.get("bias")
        else:
            k, v = self.keys(attn, text)
            bias = bias_of(cond.get("mask"), x.dtype)
        return project_out(attn, attend(attn, Heads(q, k, v), bias))

    def queries(self, attn: Any, x: Tensor) -> Tensor:
        """Queries to the text."""
        return by_head(attn, attn.to_q(x))

    def keys(self, attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the text."""
        return key_values(attn, text)

    def head(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Tokens to pixels."""
        net = self.net
        assert state.embedding is not None
        shift, scale = (net.scale_shift_table[None] + state.embedding[:, None]).chunk(2, dim=1)
        tokens = self.last_norm()(state.tokens) * (1 + scale) + shift
        return patches_to_pixels(net.proj_out(tokens), state.grid, net.config.patch_size)

    def last_norm(self) -> Any:
        """The norm before the head."""
        return self.net.norm_out

    def conditions(self, x: Tensor, fixed: dict[str, Any], varying: dict[str, Any]) -> Call:
        cond = {"text": fixed["encoder_hidden_states"]}
        if "encoder_attention_mask" in fixed:
            cond["mask"] = fixed["encoder_attention_mask"]
        if "guidance" in fixed:
            cond["guidance"] = fixed["guidance"]
        added = fixed.get("added_cond_kwargs", {})
        return Call(x, cond | {k: v for k, v in added.items() if v is not None}, varying)

    def prepare(self, cond: Any) -> Any:
        """Keys and values of all cross-attentions, and what is added to the time's embedding."""
        cond = dict(_as_dict(cond))
        if "kv" in cond:
            return cond
        text = self.text(cond.pop("text"))
        bias = bias_of(cond.pop("mask", None), text.dtype)
        if bias is not None:
            cond["bias"] = bias
        if not self.alone:
            cond["told"] = self.told(cond)
        cond["kv"] = {
            f"transformer_blocks.{i}": self.keys(block.attn2, text)
            for i, block in enumerate(self.net.transformer_blocks)
        }
        return cond


class Sana(PixArt):
    """The same with linear self-attention (Xie et al. 2024) and a convolution in each block."""

    reads = frozenset({"encoder_hidden_states", "encoder_attention_mask", "guidance"})

    def patches(self, x: Tensor) -> Tensor:
        return self.net.patch_embed(x)

    @property
    def single(self) -> Any:
        return self.net.time_embed

    @property
    def alone(self) -> bool:
        return not self.net.config.guidance_embeds

    @property
    def embedders(self) -> tuple[nn.Module, ...]:
        return (
            (self.single.emb if self.alone else self.single).timestep_embedder,
            self.single.linear,
        )

    def time(self, t: Tensor) -> Tensor:
        emb = self.single.emb if self.alone else self.single
        proj = emb.time_proj(t * self.net.config.timestep_scale)
        return emb.timestep_embedder(proj.to(dtype_of(self.net)))

    def told(self, cond: dict[str, Any]) -> Tensor:
        """What is added to the time's embedding: that of the guidance's scale."""
        if "told" in cond:
            return cond["told"]
        proj = self.single.guidance_condition_proj(cond["guidance"])
        return self.single.guidance_embedder(proj.to(dtype_of(self.net)))

    def text(self, text: Tensor) -> Tensor:
        text = text.to(dtype_of(self.net))
        return self.net.caption_norm(self.net.caption_projection(text))

    def queries(self, attn: Any, x: Tensor) -> Tensor:
        return by_head(attn, _normed(attn.norm_q, attn.to_q(x)))

    def keys(self, attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
        return by_head(attn, _normed(attn.norm_k, attn.to_k(text))), by_head(attn, attn.to_v(text))

    def attention(self, attn: Any, name: str, x: Tensor, grid: Grid, routing: Routing) -> Tensor:
        if name in routing.observe:
            raise ValueError(f"layers has {name!r}, whose linear attention makes no SAG mask")
        out = routed(name, x, routing, partial(_linear, attn, grid), attn)
        return out.clip(-65504, 65504) if out.dtype == torch.float16 else out

    def feed_forward(self, block: Any, x: Tensor, grid: Grid) -> Tensor:
        return block.ff(x.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)

    def last_norm(self) -> Any:
        return self.net.norm_out.norm


def _linear(attn: Any, grid: Grid, rows: Tensor, segment: Segment, unit: int) -> Tensor:
    """`phi(q_i) . sum_j phi(k_j) v_j / phi(q_i) . sum_j phi(k_j)`, phi the rectifier. Blurred are
    the phi(q_i), in which the attention map is linear.
    """
    if isinstance(segment.how, Identity):
        return attn.to_v(rows)
    q = F.relu(_normed(attn.norm_q, attn.to_q(rows)))
    k = F.relu(_normed(attn.norm_k, attn.to_k(rows)))
    q, k, v = (by_head(attn, y).float() for y in (q, k, attn.to_v(rows)))
    if isinstance(segment.how, BlurredQueries):
        q = blurred(q, segment.how, grid)
    mixed = q @ (k.transpose(2, 3) @ v)
    total = q @ k.sum(2).unsqueeze(-1)
    return by_token(mixed / (total + 1e-15)).to(rows.dtype)


def _normed(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _as_dict(cond: Any) -> dict[str, Any]:
    return {"text": cond} if isinstance(cond, Tensor) else cond


def what_is_missing(net: Any) -> str | None:
    """Why the network cannot run in stages; None where it can."""
    return "its blocks have GLIGEN" if hasattr(net.transformer_blocks[0], "fuser") else None
