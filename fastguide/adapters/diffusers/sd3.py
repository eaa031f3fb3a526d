"""SD3Transformer2DModel in stages: Stable Diffusion 3 and 3.5 (query-key norm, dual attention).

`cond` is a dict of "text" `[rows, T, D]` and "pooled" `[rows, E]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from fastguide.adapters.diffusers.attention import (
    Grid,
    Heads,
    attend_jointly,
    by_head,
    project_out,
    projected,
    routed_joint,
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
from fastguide.staging.shuffled import shuffled
from fastguide.staging.timed import timed


class State(NamedTuple):
    """What flows from stage to stage; `grid` is shared by all rows."""

    image: Tensor  # [rows, h w, C]
    text: Tensor | None  # [rows, T, C]
    embedding: Tensor  # [rows, C]: time and pooled text
    grid: Grid


class SD3(Adapted):
    """See the file's first lines."""

    reads = frozenset({"encoder_hidden_states", "pooled_projections"})

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Patches, text and embedding, blocks, head."""
        blocks = block_stages("transformer_blocks", self.net.transformer_blocks, _block, timed=True)
        blocks[-1] = blocks[-1]._replace(skippable=False)  # it drops the text
        return (
            Stage("pos_embed", self.embed),
            Stage("time_text_embed", self.condition, (TIME,), cond=True, timed=True),
            *blocks,
            Stage("proj_out", self.head),
        )

    @property
    def embedders(self) -> tuple[nn.Module, ...]:
        return (self.net.time_text_embed.timestep_embedder,)

    def of_times(self, t: Tensor) -> Tensor:
        """The time's part of the embedding, `[n, C]`."""
        embed = self.net.time_text_embed
        return embed.timestep_embedder(embed.time_proj(t * self.time_scale).to(dtype_of(self.net)))

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> State:
        """Patches to tokens; time to its embedding."""
        x, t = inputs
        patch = self.net.config.patch_size
        grid = (x.shape[2] // patch, x.shape[3] // patch)
        image = self.net.pos_embed(x.to(dtype_of(self.net))).contiguous()
        return State(image, None, self.embedded(t), grid)

    def condition(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> State:
        """The text's tokens; the embedding of time and pooled text."""
        cond = self.prepare(cond)
        embedding = timed(state.embedding + cond["vector"], TIME, routing)
        return state._replace(text=cond["context"], embedding=embedding)

    def head(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Tokens to pixels."""
        net = self.net
        tokens = net.proj_out(net.norm_out(state.image, state.embedding))
        return patches_to_pixels(tokens, state.grid, net.config.patch_size)

    def conditions(self, x: Tensor, fixed: dict[str, Any], varying: dict[str, Any]) -> Call:
        cond = {"text": fixed["encoder_hidden_states"], "pooled": fixed["pooled_projections"]}
        return Call(x, cond, varying)

    def prepare(self, cond: Any) -> Any:
        """The text as tokens, and the pooled text's part of the embedding."""
        if "context" in cond:
            return cond
        dtype = dtype_of(self.net)
        return {
            "context": self.net.context_embedder(cond["text"].to(dtype)),
            "vector": self.net.time_text_embed.text_embedder(cond["pooled"].to(dtype)),
        }


def added(attn: Any, text: Tensor) -> Heads:
    """Normalised heads of the text tokens."""
    q, k, v = (by_head(attn, f(text)) for f in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
    if getattr(attn, "norm_added_q", None) is not None:
        q = attn.norm_added_q(q)
    if getattr(attn, "norm_added_k", None) is not None:
        k = attn.norm_added_k(k)
    return Heads(q, k, v)


def _block(block: Any, name: str, state: State, cond: Any, routing: Routing) -> State:
    assert state.text is not None
    image, text = shuffled(state.image, name, routing), state.text
    embedding = timed(state.embedding, name, routing)
    second = None
    if block.use_dual_attention:
        normal, gate, shift_ff, scale_ff, gate_ff, second, gate_second = block.norm1(
            image, emb=embedding
        )
    else:
        normal, gate, shift_ff, scale_ff, gate_ff = block.norm1(image, emb=embedding)
    last = block.context_pre_only
    if last:
        text_normal = block.norm1_context(text, embedding)
    else:
        text_normal, text_gate, *text_ff = block.norm1_context(text, emb=embedding)

    def mix(rows: Tensor, of_text: Tensor, segment: Segment) -> tuple[Tensor, Tensor | None]:
        heads = projected(block.attn, rows), added(block.attn, of_text)
        return attend_jointly(*heads, segment.how, state.grid, with_text=not last)

    z, text_z = routed_joint(name, normal, text_normal, routing, mix)
    image = image + gate.unsqueeze(1) * project_out(block.attn, z)
    if second is not None:
        z = self_attention(block.attn2, name, second, state.grid, routing)
        image = image + gate_second.unsqueeze(1) * z
    normal = block.norm2(image) * (1 + scale_ff[:, None]) + shift_ff[:, None]
    image = image + gate_ff.unsqueeze(1) * block.ff(normal)
    if last:
        return state._replace(image=image, text=None)
    text = text + text_gate.unsqueeze(1) * block.attn.to_add_out(text_z)
    shift_ff, scale_ff, gate_ff = text_ff
    normal = block.norm2_context(text) * (1 + scale_ff[:, None]) + shift_ff[:, None]
    return state._replace(image=image, text=text + gate_ff.unsqueeze(1) * block.ff_context(normal))
