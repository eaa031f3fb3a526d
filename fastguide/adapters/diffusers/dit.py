"""DiTTransformer2DModel in stages: `cond` is class labels `[rows]`, the last of them null."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.adapters.diffusers.attention import self_attention
from fastguide.adapters.diffusers.network import (
    Adapted,
    Call,
    block_stages,
    dtype_of,
    patches_to_pixels,
)
from fastguide.staging.contract import PLAIN, Routing, Stage
from fastguide.staging.shuffled import shuffled
from fastguide.staging.timed import timed


class State(NamedTuple):
    """What flows from stage to stage; `grid` is shared by all rows."""

    tokens: Tensor  # [rows, h w, C]
    time: Tensor  # [rows, blocks, C]: the time's part of each block's embedding
    grid: tuple[int, int]


class DiT(Adapted):
    """See the file's first line."""

    reads = frozenset({"class_labels"})

    @property
    def null(self) -> int:
        return int(self.net.config.num_embeds_ada_norm)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Patches, blocks, head; every block has its own embedding of time and label."""
        numbered = enumerate(self.net.transformer_blocks)
        blocks = block_stages("transformer_blocks", numbered, _block, cond=True, timed=True)
        return (Stage("pos_embed", self.embed), *blocks, Stage("proj_out", self.head, cond=True))

    @property
    def embedders(self) -> tuple[nn.Module, ...]:
        return tuple(block.norm1.emb.timestep_embedder for block in self.net.transformer_blocks)

    def of_times(self, t: Tensor) -> Tensor:
        """The time's part of each block's embedding, `[n, blocks, C]`."""
        t, dtype = t * self.time_scale, dtype_of(self.net)
        parts = (block.norm1.emb for block in self.net.transformer_blocks)
        return torch.stack([e.timestep_embedder(e.time_proj(t).to(dtype)) for e in parts], 1)

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> State:
        """Patches to tokens."""
        x, t = inputs
        patch = self.net.patch_size
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        return State(self.net.pos_embed(x.to(dtype_of(self.net))), self.embedded(t), grid)

    def head(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Tokens to pixels, under the first block's embedding."""
        net, tokens = self.net, state.tokens
        embedding = _embedding(net.transformer_blocks[0], 0, state, cond)
        shift, scale = net.proj_out_1(F.silu(embedding)).chunk(2, dim=1)
        tokens = net.norm_out(tokens) * (1 + scale[:, None]) + shift[:, None]
        return patches_to_pixels(net.proj_out_2(tokens), state.grid, net.patch_size)

    def conditions(self, x: Tensor, fixed: dict[str, Any], varying: dict[str, Any]) -> Call:
        return Call(x, fixed["class_labels"], varying)


def _embedding(block: Any, i: int, state: State, cond: Any) -> Tensor:
    """The embedding of time and label in block i."""
    return state.time[:, i] + block.norm1.emb.class_embedder(cond)


def _block(
    numbered: tuple[int, Any], name: str, state: State, cond: Any, routing: Routing
) -> State:
    i, block = numbered
    tokens = shuffled(state.tokens, name, routing)
    norm = block.norm1
    embedding = timed(_embedding(block, i, state, cond), name, routing)
    vectors = norm.linear(norm.silu(embedding)).unsqueeze(1).chunk(6, dim=2)
    shift, scale, gate, shift_ff, scale_ff, gate_ff = vectors
    normal = norm.norm(tokens) * (1 + scale) + shift
    tokens = tokens + gate * self_attention(block.attn1, name, normal, state.grid, routing)
    normal = block.norm3(tokens) * (1 + scale_ff) + shift_ff
    return state._replace(tokens=tokens + gate_ff * block.ff(normal))
