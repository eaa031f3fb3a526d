"""Tiny networks of the families of diffusers that have no hand-written stages, called as their
pipelines call them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from tiny_diffusers import filled, rand
from torch import nn

TEXT = 5  # tokens
POOLED = {"sd3", "hunyuan video", "stable audio"}


def image_first(hidden, text):
    return (hidden, text)


def text_first(hidden, text):
    return (text, hidden)


def alone(hidden, text):
    return hidden


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        cls: of the network.
        config: of a tiny one.
        width: of the text's tokens.
        call: `(net, x, t, cond)`.
        image: whether the image's tokens come "first" or "last" in joint attention, by its source.
        grid: of the image's tokens.
        layers: two that are perturbed.
        skipped: what a block returns where it is left out, of its first two arguments.
    """

    cls: str
    config: dict[str, Any]
    width: int
    call: Callable[[Any, Any, Any, Any], Any]
    image: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    layers: tuple[str, str]
    skipped: Callable[[Any, Any], Any] | None


def packed(x, patch=2):
    """`[R, C, H, W]` to `[R, h w, 4 C]`."""
    return torch.nn.functional.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpacked(tokens, x, patch=2):
    grid = (x.shape[2] // patch, x.shape[3] // patch)
    return torch.nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), patch)


def ids(h, w, axes):
    """`[h w, axes]`: row and column in the second and third."""
    found = torch.zeros(h, w, axes)
    found[..., 1] = torch.arange(h)[:, None]
    found[..., 2] = torch.arange(w)
    return found.flatten(0, 1)


def qwen(net, x, t, cond):
    text, (h, w) = cond["text"], (x.shape[2] // 2, x.shape[3] // 2)
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    shapes = [[(1, h, w)]] * x.shape[0]
    out = net(packed(x), text, mask, t, shapes, return_dict=False)[0]
    return unpacked(out, x)


def flux2(net, x, t, cond):
    text, (h, w) = cond["text"], (x.shape[2] // 2, x.shape[3] // 2)
    places = torch.zeros(text.shape[1], 4)
    places[:, 3] = torch.arange(text.shape[1])
    guidance = torch.full((x.shape[0],), 4.0)
    out = net(packed(x), text, t, ids(h, w, 4), places, guidance, return_dict=False)[0]
    return unpacked(out, x)


def chroma(net, x, t, cond):
    text, (h, w) = cond["text"], (x.shape[2] // 2, x.shape[3] // 2)
    mask = torch.ones(x.shape[0], text.shape[1] + h * w, dtype=torch.bool)
    mask[:, text.shape[1] - 1] = False
    places = torch.zeros(text.shape[1], 3)
    out = net(packed(x), text, t, ids(h, w, 3), places, mask, return_dict=False)[0]
    return unpacked(out, x)


def z_image(net, x, t, cond):
    images, texts = list(x.unsqueeze(2).unbind()), list(cond["text"].unbind())
    return -torch.stack(net(images, 1 - t, texts, return_dict=False)[0]).squeeze(2)


def lumina2(net, x, t, cond):
    mask = torch.ones(cond["text"].shape[:2], dtype=torch.bool)
    return -net(x, 1 - t, cond["text"], mask, return_dict=False)[0]


def wan(net, x, t, cond):
    return net(x, t * 1000, cond["text"], return_dict=False)[0]


def ltx(net, x, t, cond):
    frames, height, width = x.shape[2:]
    mask = torch.ones(cond["text"].shape[:2])
    mask[:, -1] = 0
    sizes = {"num_frames": frames, "height": height, "width": width}
    tokens = x.flatten(2).transpose(1, 2)
    out = net(tokens, cond["text"], t * 1000, mask, return_dict=False, **sizes)[0]
    return out.transpose(1, 2).unflatten(2, (frames, height, width))


def hunyuan(net, x, t, cond):
    mask = torch.ones(cond["text"].shape[:2])
    guidance = torch.full((x.shape[0],), 6000.0)
    return net(x, t * 1000, cond["text"], mask, cond["pooled"], guidance, return_dict=False)[0]


def cogview4(net, x, t, cond):
    size = torch.full((x.shape[0], 2), 64.0)
    corner = torch.zeros(x.shape[0], 2)
    return net(x, cond["text"], t * 1000, size, size, corner, return_dict=False)[0]


def aura(net, x, t, cond):
    return net(x, cond["text"], t, return_dict=False)[0]


def sd35(net, x, t, cond):
    return net(x, cond["text"], cond["pooled"], t * 1000, return_dict=False)[0]


def cogvideo(net, x, t, cond):
    out = net(x.transpose(1, 2), cond["text"], t * 1000, return_dict=False)[0]
    return out.transpose(1, 2)


def mochi(net, x, t, cond):
    mask = torch.ones(cond["text"].shape[:2], dtype=torch.bool)
    return net(x, cond["text"], t * 1000, mask, return_dict=False)[0]


def krea2(net, x, t, cond):
    text, (h, w) = cond["text"].unflatten(2, (2, -1)), (x.shape[2] // 2, x.shape[3] // 2)
    places = torch.cat([torch.zeros(text.shape[1], 3), ids(h, w, 3)])
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    return unpacked(net(packed(x), text, t, places, mask, return_dict=False)[0], x)


def stable_audio(net, x, t, cond):
    places = get_1d_rotary_pos_embed(8, x.shape[2] + 1, repeat_interleave_real=False, use_real=True)
    whole = cond["pooled"].unsqueeze(1)
    return net(x, t, cond["text"], whole, rotary_embedding=places, return_dict=False)[0]


IMAGE, VIDEO = (4, 8, 12), (4, 3, 4, 8)
_BLOCKS = ("transformer_blocks.1", "transformer_blocks.2")
_TWO = ("transformer_blocks.1", "single_transformer_blocks.0")
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}

FAMILIES: dict[str, Family] = {
    "qwen-image": Family(
        "QwenImageTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": 12,
            "axes_dims_rope": (4, 6, 6),
        },
        12,
        qwen,
        "last",
        IMAGE,
        (4, 6),
        _BLOCKS,
        text_first,
    ),
    "flux.2": Family(
        "Flux2Transformer2DModel",
        {
            **_HEADS,
            "in_channels": 16,
            "num_layers": 3,
            "num_single_layers": 2,
            "joint_attention_dim": 12,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        12,
        flux2,
        "last",
        IMAGE,
        (4, 6),
        _TWO,
        text_first,
    ),
    "chroma": Family(
        "ChromaTransformer2DModel",
        {
            **_HEADS,
            "in_channels": 16,
            "num_layers": 3,
            "num_single_layers": 2,
            "joint_attention_dim": 12,
            "axes_dims_rope": (4, 6, 6),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        12,
        chroma,
        "last",
        IMAGE,
        (4, 6),
        _TWO,
        text_first,
    ),
    "z-image": Family(
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 12,
            "axes_dims": [4, 6, 6],
            "axes_lens": [128, 32, 32],
        },
        12,
        z_image,
        "first",
        IMAGE,
        (4, 6),
        ("layers.0", "layers.1"),
        alone,
    ),
    "lumina2": Family(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 3,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 6, 6),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 12,
        },
        12,
        lumina2,
        "last",
        IMAGE,
        (4, 6),
        ("layers.0", "layers.1"),
        alone,
    ),
    "wan": Family(
        "WanTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 16,
            "ffn_dim": 48,
            "num_layers": 4,
            "rope_max_seq_len": 32,
        },
        12,
        wan,
        "first",
        VIDEO,
        (3, 2, 4),
        ("blocks.1", "blocks.2"),
        alone,
    ),
    "ltx": Family(
        "LTXVideoTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": 32,
            "num_layers": 4,
            "caption_channels": 12,
        },
        12,
        ltx,
        "first",
        VIDEO,
        (3, 4, 8),
        _BLOCKS,
        alone,
    ),
    "hunyuan video": Family(
        "HunyuanVideoTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 12,
            "pooled_projection_dim": 12,
            "rope_axes_dim": (4, 6, 6),
        },
        12,
        hunyuan,
        "first",
        VIDEO,
        (3, 2, 4),
        _TWO,
        image_first,
    ),
    "cogview4": Family(
        "CogView4Transformer2DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 12,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 16,
            "sample_size": 8,
            "rope_axes_dim": (8, 8),
        },
        12,
        cogview4,
        "last",
        IMAGE,
        (4, 6),
        _BLOCKS,
        image_first,
    ),
    "auraflow": Family(
        "AuraFlowTransformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 3,
            "num_single_dit_layers": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
        12,
        aura,
        "last",
        IMAGE,
        (4, 6),
        ("joint_transformer_blocks.1", "single_transformer_blocks.0"),
        text_first,
    ),
    "sd3": Family(
        "SD3Transformer2DModel",
        {
            **_HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "joint_attention_dim": 12,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 12,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (1,),
            "qk_norm": "rms_norm",
        },
        12,
        sd35,
        "first",
        IMAGE,
        (4, 6),
        _BLOCKS,
        text_first,
    ),
    "cogvideox": Family(
        "CogVideoXTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 16,
            "text_embed_dim": 12,
            "num_layers": 4,
            "sample_width": 8,
            "sample_height": 4,
            "sample_frames": 9,
            "max_text_seq_length": TEXT,
        },
        12,
        cogvideo,
        "last",
        VIDEO,
        (3, 2, 4),
        _BLOCKS,
        image_first,
    ),
    "mochi": Family(
        "MochiTransformer3DModel",
        {
            **_HEADS,
            "in_channels": 4,
            "num_layers": 4,
            "pooled_projection_dim": 16,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "max_sequence_length": TEXT,
        },
        16,
        mochi,
        "first",
        VIDEO,
        (3, 2, 4),
        _BLOCKS,
        image_first,
    ),
    "krea2": Family(
        "Krea2Transformer2DModel",
        {
            "in_channels": 16,
            "num_layers": 4,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 48,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 16,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 32,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 6, 6),
        },
        32,
        krea2,
        "last",
        IMAGE,
        (4, 6),
        _BLOCKS,
        alone,
    ),
    "stable audio": Family(
        "StableAudioDiTModel",
        {
            **_HEADS,
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "num_key_value_attention_heads": 2,
            "cross_attention_dim": 16,
            "time_proj_dim": 16,
            "global_states_input_dim": 16,
            "cross_attention_input_dim": 16,
        },
        16,
        stable_audio,
        "last",
        (4, 16),
        (16,),
        _BLOCKS,
        alone,
    ),
}
SHAPE_OF = {name: family.shape for name, family in FAMILIES.items()}


class Called(nn.Module):
    """`net(x, t, cond)` of a family's network."""

    def __init__(self, family):
        super().__init__()
        self.family = family
        told = FAMILIES[family]
        self.net = filled(getattr(diffusers, told.cls)(**told.config))

    def forward(self, x, t, cond):
        return FAMILIES[self.family].call(self.net, x, t, cond)


def condition(family, seed):
    """Of two samples."""
    width = FAMILIES[family].width
    cond = {"text": rand(2, TEXT, width, seed=seed)}
    if family in POOLED:
        cond["pooled"] = rand(2, width, seed=seed + 9)
    return cond
