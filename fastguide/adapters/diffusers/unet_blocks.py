"""The parts of diffusers' U-Nets as stages: residual blocks, attention, resampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastguide.adapters.diffusers.attention import (
    Heads,
    attend,
    by_head,
    key_values,
    project_out,
    self_attention,
)
from fastguide.staging.contract import Routing, Stage
from fastguide.staging.shuffled import shuffled


class State(NamedTuple):
    """What flows from stage to stage; all of it is batch-first."""

    h: Tensor  # [rows, C, H, W]; inside a transformer tokens [rows, H W, C]
    embedding: Tensor  # [rows, E]: time and what is added to it
    skips: tuple[Tensor, ...] = ()
    residual: Tensor | None = None  # inside a transformer its input [rows, C, H, W]


Run = Callable[[State, Any, Routing], State]
# (attn, its name, cond) to what `cross_attention` reads: keys and values, and the text's bias
Read = Callable[[Any, str, Any], tuple[tuple[tuple[Tensor, Tensor], ...], Tensor | None]]


def kept(run: Run, state: State, cond: Any, routing: Routing) -> State:
    """`run`, and its output laid aside for the second half."""
    state = run(state, cond, routing)
    return state._replace(skips=(*state.skips, state.h))


def resnet(block: Any, takes: bool, state: State, cond: Any, routing: Routing) -> State:
    """A residual block; with `takes`, beside what was laid aside last."""
    h, skips = state.h, state.skips
    if takes:
        h, skips = torch.cat([h, skips[-1]], 1), skips[:-1]
    return state._replace(h=block(h, state.embedding), skips=skips)


def down(block: Any, state: State, cond: Any, routing: Routing) -> State:
    """Downsampling, by a convolution or a residual block."""
    timed = hasattr(block, "time_emb_proj")
    return state._replace(h=block(state.h, state.embedding) if timed else block(state.h))


def up(block: Any, state: State, cond: Any, routing: Routing) -> State:
    """Upsampling, to the size of what was laid aside."""
    if hasattr(block, "time_emb_proj"):
        return state._replace(h=block(state.h, state.embedding))
    size = None
    if state.skips:
        wanted = state.skips[-1].shape[2:]
        size = None if wanted == tuple(2 * side for side in state.h.shape[2:]) else wanted
    return state._replace(h=block(state.h, size))


def pixel_attention(attn: Any, name: str, state: State, cond: Any, routing: Routing) -> State:
    """Attention between pixels with its residual connection."""
    grid = (state.h.shape[2], state.h.shape[3])
    tokens = shuffled(state.h.flatten(2).transpose(1, 2), name, routing)
    normal = attn.group_norm(tokens.transpose(1, 2)).transpose(1, 2)
    tokens = (tokens + self_attention(attn, name, normal, grid, routing)) / (
        attn.rescale_output_factor
    )
    return state._replace(h=tokens.transpose(1, 2).unflatten(2, grid))


def enter(transformer: Any, state: State, cond: Any, routing: Routing) -> State:
    """Pixels to tokens."""
    h = transformer.norm(state.h)
    if transformer.use_linear_projection:
        tokens = transformer.proj_in(h.flatten(2).transpose(1, 2))
    else:
        tokens = transformer.proj_in(h).flatten(2).transpose(1, 2)
    return state._replace(h=tokens.contiguous(), residual=state.h)


def leave(transformer: Any, state: State, cond: Any, routing: Routing) -> State:
    """Tokens to pixels, and the transformer's residual connection."""
    assert state.residual is not None
    size = state.residual.shape[2:]
    if transformer.use_linear_projection:
        h = transformer.proj_out(state.h).transpose(1, 2).unflatten(2, size).contiguous()
    else:
        h = transformer.proj_out(state.h.transpose(1, 2).unflatten(2, size).contiguous())
    return state._replace(h=h + state.residual, residual=None)


def self_half(block: Any, name: str, state: State, cond: Any, routing: Routing) -> State:
    """Self-attention with its residual connection."""
    assert state.residual is not None
    grid = (state.residual.shape[2], state.residual.shape[3])
    tokens = shuffled(state.h, name, routing)
    z = self_attention(block.attn1, name, block.norm1(tokens), grid, routing)
    return state._replace(h=tokens + z)


def cross_half(
    block: Any, name: str, read: Read, state: State, cond: Any, routing: Routing
) -> State:
    """Cross-attention and feed-forward with their residual connections."""
    tokens = state.h
    if block.attn2 is not None:
        pairs, bias = read(block.attn2, name, cond)
        tokens = tokens + cross_attention(block.attn2, block.norm2(tokens), pairs, bias)
    return state._replace(h=tokens + block.ff(block.norm3(tokens)))


def cross_attention(
    attn: Any, x: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None
) -> Tensor:
    """Attention to the text, and to images where the layer has an IP-Adapter; `pairs` of
    `cross_key_values`.
    """
    q = by_head(attn, attn.to_q(x))
    z = attend(attn, Heads(q, *pairs[0]), bias)
    scales = getattr(attn.processor, "scale", ())
    for scale, (k, v) in zip(scales, pairs[1:], strict=len(pairs) > 1):
        if not _is_off(scale):
            z = z + scale * attend(attn, Heads(q, k, v))
    return project_out(attn, z)


def _is_off(scale: Any) -> bool:
    if isinstance(scale, list):
        raise ValueError(
            f"the IP-Adapter's scale is {scale}, one for each image, but fastguide has one a layer"
        )
    return scale == 0


def cross_key_values(
    attn: Any, text: Tensor, images: Sequence[Tensor]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values of one cross-attention for a run: the text's, then each IP-Adapter's."""
    found = [key_values(attn, text)]
    processor = attn.processor
    if hasattr(processor, "to_k_ip"):
        for to_k, to_v, image in zip(processor.to_k_ip, processor.to_v_ip, images, strict=True):
            k, v = (y.reshape(image.shape[0], -1, y.shape[-1]) for y in (to_k(image), to_v(image)))
            found.append((by_head(attn, k), by_head(attn, v)))
    return tuple(found)


def transformer_stages(transformer: Any, name: str, keeps: bool, read: Read) -> list[Stage]:
    """A Transformer2DModel: in, two halves for each block, out."""
    stages = [Stage(f"{name}.in", partial(enter, transformer))]
    for i, block in enumerate(transformer.transformer_blocks):
        at = f"{name}.transformer_blocks.{i}"
        layer = f"{at}.attn1"
        stages.append(Stage(layer, partial(self_half, block, layer), (layer,), skippable=True))
        stages.append(
            Stage(f"{at}.attn2", partial(cross_half, block, f"{at}.attn2", read), cond=True)
        )
    out: Run = partial(leave, transformer)
    stages.append(Stage(f"{name}.out", partial(kept, out) if keeps else out))
    return stages


def pair_stages(
    block: Any, name: str, index: int, read: Read, takes: bool = False, keeps: bool = False
) -> list[Stage]:
    """A residual block and, where there is one, the attention after it."""
    attentions = getattr(block, "attentions", None)
    run: Run = partial(resnet, block.resnets[index], takes)
    at = f"{name}.resnets.{index}"
    if attentions is None:
        return [Stage(at, partial(kept, run) if keeps else run)]
    return [
        Stage(at, run),
        *attention_stages(attentions[index], f"{name}.attentions.{index}", read, keeps),
    ]


def attention_stages(attention: Any, name: str, read: Read, keeps: bool = False) -> list[Stage]:
    """A transformer, or attention between pixels."""
    if hasattr(attention, "transformer_blocks"):
        return transformer_stages(attention, name, keeps, read)
    run: Run = partial(pixel_attention, attention, name)
    if not keeps:
        return [Stage(name, run, (name,), skippable=True)]
    return [
        Stage(name, run, (name,), skippable=True),
        Stage(f"{name}.keep", partial(kept, _same)),
    ]


def _same(state: State, cond: Any, routing: Routing) -> State:
    return state


def _no_text(attn: Any, name: str, cond: Any) -> Any:
    raise ValueError(f"{name} reads a text, but the network takes none")


def body_stages(
    net: Any, between: Sequence[Stage] = (), after_mid: Sequence[Stage] = (), read: Read = _no_text
) -> list[Stage]:
    """Down, middle, up; `between` before the middle, `after_mid` after it."""
    stages: list[Stage] = []
    for i, block in enumerate(net.down_blocks):
        name = f"down_blocks.{i}"
        for j in range(len(block.resnets)):
            stages += pair_stages(block, name, j, read, keeps=True)
        for j, one in enumerate(block.downsamplers or ()):
            stages.append(Stage(f"{name}.downsamplers.{j}", partial(kept, partial(down, one))))
    stages += between
    if net.mid_block is not None:
        block, name = net.mid_block, "mid_block"
        stages.append(Stage(f"{name}.resnets.0", partial(resnet, block.resnets[0], False)))
        for j, attention in enumerate(block.attentions):
            if attention is not None:
                stages += attention_stages(attention, f"{name}.attentions.{j}", read)
            run = partial(resnet, block.resnets[j + 1], False)
            stages.append(Stage(f"{name}.resnets.{j + 1}", run))
    stages += after_mid
    for i, block in enumerate(net.up_blocks):
        name = f"up_blocks.{i}"
        for j in range(len(block.resnets)):
            stages += pair_stages(block, name, j, read, takes=True)
        for j, one in enumerate(block.upsamplers or ()):
            stages.append(Stage(f"{name}.upsamplers.{j}", partial(up, one)))
    return stages


def middle_of(stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """The attention layers of the middle block."""
    return tuple(n for s in stages for n in s.layers if n.startswith("mid_block."))


BLOCKS = {
    *("CrossAttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D", "UNetMidBlock2D"),
    *("UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
}


def what_is_missing(net: Any) -> str | None:
    """Why a U-Net cannot run in these stages; None where it can."""
    for block in (*net.down_blocks, net.mid_block, *net.up_blocks):
        if block is not None and type(block).__name__ not in BLOCKS:
            return f"its blocks include a {type(block).__name__}"
        if any(getattr(block, key, None) is not None for key in ("s1", "s2", "b1", "b2")):
            return "FreeU is enabled on it"
        for attention in getattr(block, "attentions", None) or ():
            name = type(attention).__name__
            if attention is not None and name not in ("Transformer2DModel", "Attention"):
                return f"its attention blocks include a {name}"
    for module in net.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            if module.norm_type != "layer_norm" or module.only_cross_attention:
                return f"its transformers have {module.norm_type} and cross-attention in attn1"
            if hasattr(module, "fuser") or module.pos_embed is not None:
                return "its transformers have GLIGEN or position embeddings"
            if module.attn2 is not None and not module.attn2.is_cross_attention:
                return "its transformers attend to themselves twice"
        if type(module).__name__ == "Attention" and module.spatial_norm is not None:
            return "its attention has a spatial norm"
    return None
