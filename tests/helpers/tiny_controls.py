"""Tiny pipelines of diffusers with something beside the prompt that steers them: ControlNets,
T2I-Adapters, IP-Adapters, and images that are edited.
"""

from __future__ import annotations

import inspect

import diffusers
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import (
    ImageProjection,
    IPAdapterTimeImageProjection,
    MultiIPAdapterImageProjection,
)
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from tiny_diffusers import B, filled, rand, sd, sdxl
from tiny_pipelines import PIPES, flux_pipe, made, sd3_pipe, sd_pipe, sdxl_pipe

SD3_CONTROL = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
}
FLUX_CONTROL = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
    "guidance_embeds": True,
}
SANA_CONTROL = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 12,
    "cross_attention_dim": 24,
    "caption_channels": 20,
    "sample_size": 8,
}


def picture(side, seed=9):
    """An image as pipelines take it, in [0, 1]."""
    return rand(B, 3, side, side, seed=seed).abs().clamp(0, 1)


def of_parts(kind, pipe, **more):
    """A pipeline of the parts of another."""
    names = inspect.signature(getattr(diffusers, kind).__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in names}
    return made(kind, **{**parts, **more})


def sd3_control():
    pipe = sd3_pipe()
    pipe.vae.register_to_config(shift_factor=0.1)
    net = filled(diffusers.SD3ControlNetModel(**SD3_CONTROL))
    return of_parts("StableDiffusion3ControlNetPipeline", pipe, controlnet=net)


def flux_control():
    pipe = flux_pipe()
    pipe.vae.register_to_config(shift_factor=0.1)
    net = filled(diffusers.FluxControlNetModel(**FLUX_CONTROL))
    return of_parts("FluxControlNetPipeline", pipe, controlnet=net)


def sana_control():
    net = filled(diffusers.SanaControlNetModel(**SANA_CONTROL))
    return of_parts("SanaControlNetPipeline", PIPES["sana"][0](), controlnet=net)


def t2i(pipe, kind):
    net = diffusers.T2IAdapter(3, [16, 32], num_res_blocks=1, downscale_factor=2)
    return of_parts(kind, pipe, adapter=filled(net))


def with_one():
    """SDXL's network with attention where the adapter's features come in."""
    return sdxl(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=2,
    )


def edits(pipe, kind, unet):
    pipe.vae.quant_conv.weight.data *= 1e-4  # images of about one
    return of_parts(kind, pipe, unet=unet)


def sd3_ip():
    pipe = sd3_pipe()
    net = pipe.transformer
    net.image_proj = IPAdapterTimeImageProjection(
        embed_dim=12, output_dim=16, hidden_dim=16, depth=1, dim_head=8, heads=2, num_queries=3
    )
    for block in net.transformer_blocks:
        block.attn.processor = SD3IPAdapterJointAttnProcessor2_0(32, 16, 8, 16, 0.7)
    filled(net)
    return pipe


def flux_ip():
    pipe = flux_pipe()
    net = pipe.transformer
    project = ImageProjection(image_embed_dim=12, cross_attention_dim=32, num_image_text_embeds=4)
    net.encoder_hid_proj = MultiIPAdapterImageProjection([project])
    net.config.encoder_hid_dim_type = "ip_image_proj"
    for block in net.transformer_blocks:
        block.attn.processor = FluxIPAdapterAttnProcessor(32, 32, scale=0.7)
    filled(net)
    return pipe


def control(side, name="control_image", scale="controlnet_conditioning_scale"):
    """What steers, and how much; and the name of its strength."""
    return lambda: {name: picture(side), scale: 1.0}, scale


def embeds(several):
    """An image as its encoder has it; `several`: the positive and negative one by name."""
    one, other = rand(1, 1, 12, seed=6), rand(1, 1, 12, seed=7)  # for each prompt of a call
    if several:
        return {"ip_adapter_image_embeds": [one], "negative_ip_adapter_image_embeds": [other]}
    return {"ip_adapter_image_embeds": torch.cat([other, one])}


# name: pipeline, family of its call, what steers it, the call's strength of that
STEERED = {
    "SD3 ControlNet": (sd3_control, "sd3", *control(16)),
    "Flux ControlNet": (flux_control, "flux", *control(16)),
    "Sana ControlNet": (sana_control, "sana", *control(32)),
    "SD T2I-Adapter": (
        lambda: t2i(sd_pipe(), "StableDiffusionAdapterPipeline"),
        "sd",
        *control(32, "image", "adapter_conditioning_scale"),
    ),
    "SDXL T2I-Adapter": (
        lambda: t2i(sdxl_pipe(unet=with_one()), "StableDiffusionXLAdapterPipeline"),
        "sdxl",
        *control(32, "image", "adapter_conditioning_scale"),
    ),
    "SD3 IP-Adapter": (sd3_ip, "sd3", lambda: embeds(False), None),
    "Flux IP-Adapter": (flux_ip, "flux", lambda: embeds(True), None),
}
EDITING = {
    "SD InstructPix2Pix": (
        lambda: edits(sd_pipe(), "StableDiffusionInstructPix2PixPipeline", sd(in_channels=8)),
        "sd",
    ),
    "SDXL InstructPix2Pix": (
        lambda: edits(sdxl_pipe(), "StableDiffusionXLInstructPix2PixPipeline", sdxl(in_channels=8)),
        "sdxl",
    ),
}


def call_of(pipe, family, **changes):
    """A call of the pipeline, of square images; what it does not take is left out."""
    given = {**PIPES[family][1](), **changes}
    if family == "flux" and type(pipe).__name__ != "FluxPipeline":
        given["width"] = 16
    names = inspect.signature(getattr(diffusers, type(pipe).__name__).__call__).parameters
    return {name: value for name, value in given.items() if name in names}
