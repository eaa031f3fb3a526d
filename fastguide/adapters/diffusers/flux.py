"""FluxTransformer2DModel in stages: joint blocks, then single blocks on text and image as one.

`cond` is a dict of "text" `[rows, T, D]`, "pooled" `[rows, E]` and, for guidance-distilled weights,
"guidance" `[rows]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.adapters.diffusers.attention import (
    Grid,
    Heads,
    attend_jointly,
    project_out,
    projected,
    routed_joint,
)
from fastguide.adapters.diffusers.network import (
    Adapted,
    Call,
    NotUnderstood,
    block_stages,
    dtype_of,
)
from fastguide.adapters.diffusers.sd3 import added
from fastguide.staging.contract import PLAIN, TIME, Routing, Segment, Stage
from fastguide.staging.shuffled import shuffled
from fastguide.staging.timed import timed


class Rope:
    """Cosines and sines `[T + h w, d]` of the rotary embedding, for all rows alike."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self.cos, self.sin = cos, sin

    def part(self, start: int, stop: int | None) -> Rope:
        """That of some tokens."""
        return Rope(self.cos[start:stop], self.sin[start:stop])

    def turned(self, x: Tensor) -> Tensor:
        """`x` `[rows, heads, N, d]`, pairs of channels turned."""
        real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-imaginary, real], -1).flatten(-2)
        return (x.float() * self.cos + turned.float() * self.sin).to(x.dtype)


class State(NamedTuple):
    """What flows from stage to stage; `rope` and what follows are shared by all rows."""

    image: Tensor  # [rows, h w, C]; in the single blocks [rows, T + h w, C], the text first
    text: Tensor | None  # [rows, T, C]
    embedding: Tensor  # [rows, C]
    rope: Rope | None
    grid: Grid
    before: int  # text tokens in `image`


class Flux(Adapted):
    """See the file's first lines."""

    reads = frozenset(
        {"encoder_hidden_states", "pooled_projections", "guidance", "img_ids", "txt_ids"}
    )

    def __init__(self, net: Any, time_scale: float = 1.0) -> None:
        super().__init__(net, 1000.0)
        self.grid: Grid = (0, 0)  # of a pipeline's packed latents
        self._ids: tuple[Tensor, Tensor] | None = None

    @property
    def outputs(self) -> int:
        return 1

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Tokens, text and embedding, joint blocks, single blocks, head."""
        net = self.net
        joint = block_stages("transformer_blocks", net.transformer_blocks, _joint, timed=True)
        single = block_stages(
            "single_transformer_blocks", net.single_transformer_blocks, _single, timed=True
        )
        return (
            Stage("x_embedder", self.embed),
            Stage("time_text_embed", self.condition, (TIME,), cond=True, timed=True),
            *joint,
            Stage("join", _join),
            *single,
            Stage("proj_out", self.head),
        )

    @property
    def embedders(self) -> tuple[nn.Module, ...]:
        return (self.net.time_text_embed.timestep_embedder,)

    def of_times(self, t: Tensor) -> Tensor:
        """The time's part of the embedding, `[n, C]`."""
        embed = self.net.time_text_embed
        dtype = dtype_of(self.net)
        return embed.timestep_embedder(embed.time_proj(t.to(dtype) * self.time_scale).to(dtype))

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> State:
        """2 x 2 pixels to tokens; time to its embedding."""
        x, t = inputs
        image = self.net.x_embedder(self.pack(x.to(dtype_of(self.net))))
        grid = (x.shape[2] // 2, x.shape[3] // 2)
        return State(image, None, self.embedded(t), None, grid, 0)

    def condition(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> State:
        """The text's tokens; the embedding of time, guidance and pooled text."""
        cond = self.prepare(cond)
        text = cond["context"]
        embedding = timed(state.embedding + cond["vector"], TIME, routing)
        rope = self.rope(text.shape[1], state.grid, text.device)
        return state._replace(text=text, embedding=embedding, rope=rope)

    def rope(self, tokens: int, grid: Grid, device: torch.device) -> Rope:
        """The rotary embedding of text tokens, all at 0, and an image."""
        ids = torch.cat([torch.zeros(tokens, 3, device=device), image_ids(grid, device)])
        return Rope(*self.net.pos_embed(ids))

    def head(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Tokens to pixels."""
        image = state.image[:, state.before :]
        tokens = self.net.proj_out(self.net.norm_out(image, state.embedding))
        return _pixels(tokens, state.grid)

    def pack(self, x: Tensor) -> Tensor:
        """2 x 2 pixels to one, `[rows, C, 2 h, 2 w]` to `[rows, h w, 4 C]`."""
        return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2).contiguous()

    def unpack(self, x: Tensor) -> Tensor:
        return _pixels(x, self.grid).contiguous()

    def conditions(self, x: Tensor, fixed: dict[str, Any], varying: dict[str, Any]) -> Call:
        self.place(fixed)
        cond = {"text": fixed["encoder_hidden_states"], "pooled": fixed["pooled_projections"]}
        if "guidance" in fixed:
            cond["guidance"] = fixed["guidance"]
        return Call(x, cond, varying)

    def place(self, given: dict[str, Any]) -> None:
        """The grid, once for each pair of ids."""
        image, text = given["img_ids"], given["txt_ids"]
        if self._ids is not None and self._ids[0] is image and self._ids[1] is text:
            return
        last = image[-1].tolist()
        grid = (int(last[1]) + 1, int(last[2]) + 1)
        if bool(text.any()) or not torch.equal(image.float(), image_ids(grid, image.device)):
            raise NotUnderstood("img_ids, txt_ids are not those of one image and a text at 0")
        self._ids, self.grid = (image, text), grid

    def prepare(self, cond: Any) -> Any:
        """The text as tokens, and what pooled text and guidance add to the embedding."""
        if "context" in cond:
            return cond
        dtype, embed = dtype_of(self.net), self.net.time_text_embed
        vector = embed.text_embedder(cond["pooled"].to(dtype))
        if self.net.config.guidance_embeds:
            scale = embed.time_proj(cond["guidance"].to(dtype) * 1000).to(dtype)
            vector = vector + embed.guidance_embedder(scale)
        return {"context": self.net.context_embedder(cond["text"].to(dtype)), "vector": vector}


def _pixels(tokens: Tensor, grid: Grid) -> Tensor:
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), 2)


def image_ids(grid: Grid, device: torch.device) -> Tensor:
    """`[h w, 3]`: 0, row and column of each token."""
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    ids = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(ids[:, :1]), ids], 1)


def _join(state: State, cond: Any, routing: Routing) -> State:
    assert state.text is not None
    tokens = torch.cat([state.text, state.image], 1)
    return state._replace(image=tokens, text=None, before=state.text.shape[1])


def _turned(heads: Heads, rope: Rope) -> Heads:
    return heads._replace(q=rope.turned(heads.q), k=rope.turned(heads.k))


def _joint(block: Any, name: str, state: State, cond: Any, routing: Routing) -> State:
    assert state.text is not None
    assert state.rope is not None
    image, text = shuffled(state.image, name, routing), state.text
    before, rope, attn = text.shape[1], state.rope, block.attn
    embedding = timed(state.embedding, name, routing)
    normal, gate, *of_ff = block.norm1(image, emb=embedding)
    text_normal, text_gate, *text_ff = block.norm1_context(text, emb=embedding)

    def mix(rows: Tensor, of_text: Tensor, segment: Segment) -> tuple[Tensor, Tensor | None]:
        of_image = _turned(projected(attn, rows), rope.part(before, None))
        words = _turned(added(attn, of_text), rope.part(0, before))
        return attend_jointly(of_image, words, segment.how, state.grid)

    z, text_z = routed_joint(name, normal, text_normal, routing, mix)
    image = image + gate.unsqueeze(1) * project_out(attn, z)
    image = _feed_forward(image, block.norm2, block.ff, *of_ff)
    text = text + text_gate.unsqueeze(1) * attn.to_add_out(text_z)
    text = _feed_forward(text, block.norm2_context, block.ff_context, *text_ff)
    return state._replace(image=image, text=_bounded(text))


def _feed_forward(
    x: Tensor, norm: Any, ff: Any, shift: Tensor, scale: Tensor, gate: Tensor
) -> Tensor:
    return x + gate.unsqueeze(1) * ff(norm(x) * (1 + scale[:, None]) + shift[:, None])


def _bounded(x: Tensor) -> Tensor:
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


def _single(block: Any, name: str, state: State, cond: Any, routing: Routing) -> State:
    assert state.rope is not None
    before, rope, attn, tokens = state.before, state.rope, block.attn, state.image
    if name in routing.segments:
        image = shuffled(tokens[:, before:], name, routing)
        tokens = torch.cat([tokens[:, :before], image], 1)
    embedding = timed(state.embedding, name, routing)
    normal, gate = block.norm(tokens, emb=embedding)
    hidden = block.act_mlp(block.proj_mlp(normal))
    if name in routing.segments:

        def mix(rows: Tensor, of_text: Tensor, segment: Segment) -> tuple[Tensor, Tensor | None]:
            of_image = _turned(projected(attn, rows), rope.part(before, None))
            words = _turned(projected(attn, of_text), rope.part(0, before))
            return attend_jointly(of_image, words, segment.how, state.grid)

        z, text_z = routed_joint(name, normal[:, before:], normal[:, :before], routing, mix)
        assert text_z is not None
        z = torch.cat([text_z, z], 1)
    else:
        heads = _turned(projected(attn, normal), rope)
        z = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    tokens = tokens + gate.unsqueeze(1) * block.proj_out(torch.cat([z, hidden], 2))
    return state._replace(image=_bounded(tokens))
