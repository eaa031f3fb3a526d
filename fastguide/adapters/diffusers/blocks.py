"""What the networks of diffusers are made of: the data that staging by modules takes, and nothing
about how they work. A class that is not here runs with its outermost lists of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fastguide.adapters.diffusers.network import class_name
from fastguide.staging.layers import matching
from fastguide.staging.modules import Modules


@dataclass(frozen=True)
class Blocks:
    """Of one class of networks.

    Args:
        layers: lists of blocks, or patterns, in the order in which they run.
        time: the submodule that embeds the time.
        parts, units, middle: as in `fastguide.staging.modules.Modules`; patterns of units and of
            the middle that a network does not have are left out.
        times: what pipelines multiply the scheduler's timesteps with, or the name that this has in
            the network's config.
        backwards: whether pipelines give 1 - t for a flow's time t in [0, 1].
        negated: whether they negate what the network returns.
        packed: whether latents are tokens `[B, N, C]`.
        frames_first: whether latents of a video are `[B, T, C, H, W]`.
        extra: whether the network's input may have more channels than latents have.
        lists: whether latents, what the network returns and the arguments of these names are lists
            of a tensor for each sample, images with an axis of one frame.
        axes: the axis of the batch, of arguments where it is not the first.
    """

    layers: tuple[str, ...] | str
    time: str | None = None
    parts: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    middle: tuple[str, ...] = ()
    times: float | str = 1.0
    backwards: bool = False
    negated: bool = False
    packed: bool = False
    frames_first: bool = False
    extra: bool = False
    lists: tuple[str, ...] = ()
    axes: tuple[tuple[str, int], ...] = ()


_JOINT = ("transformer_blocks",)
_DOUBLE = ("transformer_blocks", "single_transformer_blocks")
_LUMINA = ("noise_refiner", "layers")
_HALVES = ("down_blocks.*", "mid_block", "up_blocks.*")

BLOCKS: dict[str, Blocks] = {
    "UNet2DConditionModel": Blocks(
        tuple(f"{half}.attentions.*.transformer_blocks.*" for half in _HALVES),
        "time_embedding",
        ("attn1",),
        tuple(f"{half}.resnets.*" for half in _HALVES),
        ("mid_block.attentions.*.transformer_blocks.*.attn1",),
        extra=True,
    ),
    "UNet2DModel": Blocks(
        tuple(f"{half}.attentions.*" for half in _HALVES),
        "time_embedding",
        (),
        tuple(f"{half}.resnets.*" for half in _HALVES),
        ("mid_block.attentions.*",),
    ),
    "AllegroTransformer3DModel": Blocks(_JOINT, "adaln_single.emb"),
    "AuraFlowTransformer2DModel": Blocks(
        ("joint_transformer_blocks", "single_transformer_blocks"), "time_step_proj", times=1e-3
    ),
    "ChromaTransformer2DModel": Blocks(_DOUBLE, times=1e-3, packed=True),
    "CogVideoXTransformer3DModel": Blocks(_JOINT, "time_embedding", frames_first=True),
    "CogView4Transformer2DModel": Blocks(_JOINT, "time_condition_embed"),
    "DiTTransformer2DModel": Blocks(_JOINT),
    "Flux2Transformer2DModel": Blocks(_DOUBLE, "time_guidance_embed", times=1e-3, packed=True),
    "FluxTransformer2DModel": Blocks(_DOUBLE, "time_text_embed", times=1e-3, packed=True),
    "HiDreamImageTransformer2DModel": Blocks(
        ("double_stream_blocks", "single_stream_blocks"),
        "t_embedder",
        negated=True,
        axes=(("encoder_hidden_states_llama3", 1),),
    ),
    "HunyuanVideo15Transformer3DModel": Blocks(_JOINT, "time_embed", extra=True),
    "HunyuanVideoTransformer3DModel": Blocks(_DOUBLE, "time_text_embed"),
    "Krea2Transformer2DModel": Blocks(_JOINT, "time_embed", times=1e-3, packed=True),
    "LTXVideoTransformer3DModel": Blocks(_JOINT, "time_embed.emb", packed=True),
    "Lumina2Transformer2DModel": Blocks(
        _LUMINA, "time_caption_embed", backwards=True, negated=True
    ),
    "MochiTransformer3DModel": Blocks(_JOINT, "time_embed"),
    "PixArtTransformer2DModel": Blocks(_JOINT, "adaln_single.emb"),
    "QwenImageTransformer2DModel": Blocks(_JOINT, "time_text_embed", times=1e-3, packed=True),
    "SD3Transformer2DModel": Blocks(_JOINT, "time_text_embed"),
    "SanaTransformer2DModel": Blocks(_JOINT, times="timestep_scale"),
    "SanaVideoTransformer3DModel": Blocks(_JOINT),
    "StableAudioDiTModel": Blocks(_JOINT, "time_proj"),
    "WanTransformer3DModel": Blocks(("blocks",), "condition_embedder", extra=True),
    "WanVACETransformer3DModel": Blocks(("blocks",), "condition_embedder"),
    "ZImageTransformer2DModel": Blocks(
        _LUMINA, "t_embedder", backwards=True, negated=True, lists=("cap_feats",)
    ),
}


def blocks_of(net: Any) -> Blocks:
    """The table's entry, or one that says nothing."""
    return BLOCKS.get(class_name(net), Blocks("auto"))


def modules_of(net: nn.Module, inner: Any, prefix: str, **settings: Any) -> Modules:
    """`net`, which calls the network `inner` of diffusers that it has at the path `prefix`, staged
    by its modules; `settings` as `Modules` takes them go before the table's.

    Raises:
        ValueError: the network is of no list of blocks.
    """
    blocks = BLOCKS.get(class_name(inner))
    known: dict[str, Any] = {}
    if blocks is not None:
        assert not isinstance(blocks.layers, str)
        layers = _there(inner, blocks.layers)
        known = {"layers": layers, "parts": blocks.parts, "time": blocks.time}
        known["units"] = _there(inner, blocks.units)
        known["middle"] = _there(inner, blocks.middle)
    return Modules(net, prefix=prefix, **{**known, **settings})


def _there(net: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    """The submodules that the patterns stand for; a U-Net may have no attention in one half."""
    return [path for pattern in patterns for path in matching(net, pattern)]
