"""Tiny pipelines of diffusers with random weights and embeddings instead of text encoders."""

from __future__ import annotations

import inspect

import diffusers
import torch
from tiny_diffusers import B, dit, filled, flux, mask, pixart, rand, sana, sd, sd3, sdxl, unet2d

SD_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def vae(channels=4):
    return filled(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=32,
        )
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ddim(**flags):
    return diffusers.DDIMScheduler(
        **{**SD_NOISE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **flags}
    )


def made(kind, **parts):
    """The pipeline `kind` of `parts`; what else it needs, text encoders, is None."""
    cls = getattr(diffusers, kind)
    known = list(inspect.signature(cls.__init__).parameters.values())[1:]
    if any(one.name == "requires_safety_checker" for one in known):
        parts["requires_safety_checker"] = False
    missing = {one.name for one in known if one.default is one.empty} - set(parts)
    return quiet(cls(**dict.fromkeys(missing), **parts))


def run_of(**changes):
    """What every call has: four steps to latents."""
    return {
        "num_inference_steps": 4,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
        **changes,
    }


def texts(width, pooled=None):
    """Embeddings of prompts and negative prompts, and what is pooled of them."""
    found = {
        "prompt_embeds": rand(B, 7, width, seed=1),
        "negative_prompt_embeds": rand(B, 7, width, seed=2),
    }
    if pooled is not None:
        found["pooled_prompt_embeds"] = rand(B, pooled, seed=3)
        found["negative_pooled_prompt_embeds"] = rand(B, pooled, seed=4)
    return found


def flow_scheduler():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def sd_pipe(scheduler=None, unet=None):
    return made(
        "StableDiffusionPipeline", vae=vae(), unet=unet or sd(), scheduler=scheduler or ddim()
    )


def sd_call(**changes):
    return {**texts(24), **run_of(**changes)}


def sdxl_pipe(scheduler=None, unet=None):
    scheduler = scheduler or diffusers.EulerDiscreteScheduler(**SD_NOISE)
    return made("StableDiffusionXLPipeline", vae=vae(), unet=unet or sdxl(), scheduler=scheduler)


def sdxl_call(**changes):
    return {**texts(64, pooled=32), **run_of(**changes)}


def sd3_pipe(scheduler=None, transformer=None):
    return made(
        "StableDiffusion3Pipeline",
        vae=vae(),
        transformer=transformer or sd3(),
        scheduler=scheduler or flow_scheduler(),
    )


def sd3_call(**changes):
    return {**texts(32, pooled=64), "height": 16, "width": 16, **run_of(**changes)}


def flux_pipe(scheduler=None, transformer=None):
    return made(
        "FluxPipeline",
        vae=vae(),
        transformer=transformer or flux(),
        scheduler=scheduler or flow_scheduler(),
    )


def flux_call(**changes):
    return {**texts(32, pooled=32), "height": 16, "width": 32, **run_of(**changes)}


def pixart_pipe(scheduler=None, transformer=None, kind="PixArtSigmaPipeline"):
    return made(
        kind,
        vae=vae(),
        transformer=transformer or pixart(),
        scheduler=scheduler or diffusers.DPMSolverMultistepScheduler(),
    )


def pixart_call(**changes):
    return {
        **texts(20),
        "prompt_attention_mask": mask(),
        "negative_prompt_attention_mask": mask().flip(0),
        "prompt": None,
        "negative_prompt": None,
        "height": 16,
        "width": 16,
        "use_resolution_binning": False,
        **run_of(**changes),
    }


def compressing_vae():
    config = {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "downsample_block_type": "conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    }
    return filled(diffusers.AutoencoderDC(**config))


def sana_pipe(scheduler=None, transformer=None):
    return made(
        "SanaPipeline",
        vae=compressing_vae(),
        transformer=transformer or sana(),
        scheduler=scheduler or flow_scheduler(),
    )


def sana_call(**changes):
    return pixart_call(**{"height": 32, "width": 32, **changes})


def dit_pipe(scheduler=None, transformer=None):
    return made(
        "DiTPipeline",
        vae=vae(),
        transformer=transformer or dit(),
        scheduler=scheduler or diffusers.DDIMScheduler(clip_sample=False),
    )


def dit_call(**changes):
    return {"class_labels": [3, 7], **run_of(**{"output_type": "pt", **changes})}


def ddim_pipe(scheduler=None, unet=None):
    return made("DDIMPipeline", unet=unet or unet2d(), scheduler=scheduler or ddim())


def ddpm_pipe(scheduler=None, unet=None):
    scheduler = scheduler or diffusers.DDPMScheduler()
    return made("DDPMPipeline", unet=unet or unet2d(), scheduler=scheduler)


def plain_call(**changes):
    return {"batch_size": B, **run_of(**{"output_type": "pt", **changes})}


PIPES = {
    "sd": (sd_pipe, sd_call, "guidance_scale"),
    "sdxl": (sdxl_pipe, sdxl_call, "guidance_scale"),
    "sd3": (sd3_pipe, sd3_call, "guidance_scale"),
    "flux": (flux_pipe, flux_call, "true_cfg_scale"),
    "pixart": (pixart_pipe, pixart_call, "guidance_scale"),
    "sana": (sana_pipe, sana_call, "guidance_scale"),
    "dit": (dit_pipe, dit_call, "guidance_scale"),
}


def result(output):
    """What a pipeline returned, as a tensor."""
    found = output.images
    return found if isinstance(found, torch.Tensor) else torch.as_tensor(found)
