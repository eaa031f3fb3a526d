"""Tiny networks of diffusers with random weights, and calls of them; nothing is downloaded."""

from __future__ import annotations

import diffusers
import torch

B = 2


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(net):
    """Random weights everywhere: nothing at zero, no gate closed."""
    generator = torch.Generator().manual_seed(3)
    for parameter in net.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = noise * size + (1.0 if parameter.ndim == 1 else 0.0) * parameter.data
    return net.eval()


def unet2d(**changes):
    config = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return filled(diffusers.UNet2DModel(**{**config, **changes}))


def sd(**changes):
    config = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return filled(diffusers.UNet2DConditionModel(**{**config, **changes}))


def sdxl(**changes):
    config = {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": 80,
        "cross_attention_dim": 64,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return sd(**{**config, **changes})


def dit(**changes):
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
    }
    return filled(diffusers.DiTTransformer2DModel(**{**config, **changes}))


def pixart(**changes):
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "sample_size": 8,
        "patch_size": 2,
        "cross_attention_dim": 24,
        "caption_channels": 20,
        "use_additional_conditions": False,
    }
    return filled(diffusers.PixArtTransformer2DModel(**{**config, **changes}))


def sd3(**changes):
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "out_channels": 4,
        "pos_embed_max_size": 16,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    }
    return filled(diffusers.SD3Transformer2DModel(**{**config, **changes}))


def flux(**changes):
    config = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    }
    return filled(diffusers.FluxTransformer2DModel(**{**config, **changes}))


def sana(**changes):
    config = {
        "patch_size": 1,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 20,
        "sample_size": 8,
        "qk_norm": "rms_norm_across_heads",
    }
    return filled(diffusers.SanaTransformer2DModel(**{**config, **changes}))


def mask(rows=B, length=7):
    found = torch.ones(rows, length)
    found[0, 4:] = 0
    return found


def call_unet2d(rows=B, side=16):
    return (rand(rows, 3, side, side),), {}


def call_sd(rows=B, side=16, seed=1):
    return (rand(rows, 4, side, side),), {"encoder_hidden_states": rand(rows, 7, 24, seed=seed)}


def call_sdxl(rows=B, side=16, seed=1):
    added = {"text_embeds": rand(rows, 32, seed=seed + 9), "time_ids": rand(rows, 6).abs() * 100}
    text = rand(rows, 7, 64, seed=seed)
    return (rand(rows, 4, side, side),), {
        "encoder_hidden_states": text,
        "added_cond_kwargs": added,
    }


def call_dit(rows=B, side=8, seed=1):
    labels = torch.arange(rows) * 7 + seed
    return (rand(rows, 4, side, side),), {"class_labels": labels}


def call_pixart(rows=B, side=8, seed=1):
    return (rand(rows, 4, side, side),), {
        "encoder_hidden_states": rand(rows, 7, 20, seed=seed),
        "encoder_attention_mask": mask(rows),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def call_sd3(rows=B, side=8, seed=1):
    return (rand(rows, 4, side, side),), {
        "encoder_hidden_states": rand(rows, 7, 32, seed=seed),
        "pooled_projections": rand(rows, 64, seed=seed + 9),
    }


def call_flux(rows=B, side=8, seed=1):
    half = side // 2
    ids = torch.zeros(half, half, 3)
    ids[..., 1] += torch.arange(half)[:, None]
    ids[..., 2] += torch.arange(half)
    return (rand(rows, half * half, 16),), {
        "encoder_hidden_states": rand(rows, 7, 32, seed=seed),
        "pooled_projections": rand(rows, 32, seed=seed + 9),
        "guidance": torch.full((rows,), 3.5),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(7, 3),
    }


def call_sana(rows=B, side=8, seed=1):
    return (rand(rows, 4, side, side),), {
        "encoder_hidden_states": rand(rows, 7, 20, seed=seed),
        "encoder_attention_mask": mask(rows),
    }


NETS = {
    "unet2d": (unet2d, call_unet2d),
    "sd": (sd, call_sd),
    "sdxl": (sdxl, call_sdxl),
    "dit": (dit, call_dit),
    "pixart": (pixart, call_pixart),
    "sd3": (sd3, call_sd3),
    "flux": (flux, call_flux),
    "sana": (sana, call_sana),
}
