"""Tiny pipelines of diffusers with random weights and embeddings instead of text encoders."""

from __future__ import annotations

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


def sd_pipe(scheduler=None, unet=None):
    return quiet(
        diffusers.StableDiffusionPipeline(
            vae=vae(),
            text_encoder=None,
            tokenizer=None,
            unet=unet or sd(),
            scheduler=scheduler or ddim(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sd_call(**changes):
    return {
        "prompt_embeds": rand(B, 7, 24, seed=1),
        "negative_prompt_embeds": rand(B, 7, 24, seed=2),
        "num_inference_steps": 4,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
        **changes,
    }


def sdxl_pipe(scheduler=None, unet=None):
    return quiet(
        diffusers.StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=unet or sdxl(),
            scheduler=scheduler or diffusers.EulerDiscreteScheduler(**SD_NOISE),
            add_watermarker=False,
        )
    )


def sdxl_call(**changes):
    return {
        **sd_call(),
        "prompt_embeds": rand(B, 7, 64, seed=1),
        "negative_prompt_embeds": rand(B, 7, 64, seed=2),
        "pooled_prompt_embeds": rand(B, 32, seed=3),
        "negative_pooled_prompt_embeds": rand(B, 32, seed=4),
        **changes,
    }


def sd3_pipe(scheduler=None, transformer=None):
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=transformer or sd3(),
            scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def sd3_call(**changes):
    return {
        **sd_call(),
        "height": 16,
        "width": 16,
        "prompt_embeds": rand(B, 7, 32, seed=1),
        "negative_prompt_embeds": rand(B, 7, 32, seed=2),
        "pooled_prompt_embeds": rand(B, 64, seed=3),
        "negative_pooled_prompt_embeds": rand(B, 64, seed=4),
        **changes,
    }


def flux_pipe(scheduler=None, transformer=None):
    return quiet(
        diffusers.FluxPipeline(
            transformer=transformer or flux(),
            scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
        )
    )


def flux_call(**changes):
    return {
        **sd_call(),
        "height": 16,
        "width": 32,
        "prompt_embeds": rand(B, 7, 32, seed=1),
        "negative_prompt_embeds": rand(B, 7, 32, seed=2),
        "pooled_prompt_embeds": rand(B, 32, seed=3),
        "negative_pooled_prompt_embeds": rand(B, 32, seed=4),
        **changes,
    }


def pixart_pipe(scheduler=None, transformer=None):
    return quiet(
        diffusers.PixArtSigmaPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=vae(),
            transformer=transformer or pixart(),
            scheduler=scheduler or diffusers.DPMSolverMultistepScheduler(),
        )
    )


def pixart_call(**changes):
    return {
        **sd_call(),
        "height": 16,
        "width": 16,
        "use_resolution_binning": False,
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": rand(B, 7, 20, seed=1),
        "negative_prompt_embeds": rand(B, 7, 20, seed=2),
        "prompt_attention_mask": mask(),
        "negative_prompt_attention_mask": mask().flip(0),
        **changes,
    }


def sana_pipe(scheduler=None, transformer=None):
    return quiet(
        diffusers.SanaPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=filled(
                diffusers.AutoencoderDC(
                    latent_channels=4,
                    attention_head_dim=2,
                    encoder_block_types=("ResBlock", "EfficientViTBlock"),
                    decoder_block_types=("ResBlock", "EfficientViTBlock"),
                    encoder_block_out_channels=(8, 8),
                    decoder_block_out_channels=(8, 8),
                    encoder_qkv_multiscales=((), (5,)),
                    decoder_qkv_multiscales=((), (5,)),
                    encoder_layers_per_block=(1, 1),
                    decoder_layers_per_block=(1, 1),
                    downsample_block_type="conv",
                    upsample_block_type="interpolate",
                    decoder_norm_types="rms_norm",
                    decoder_act_fns="silu",
                )
            ),
            transformer=transformer or sana(),
            scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )


def sana_call(**changes):
    return {**pixart_call(), "height": 32, "width": 32, **changes}


def dit_pipe(scheduler=None, transformer=None):
    return quiet(
        diffusers.DiTPipeline(
            transformer=transformer or dit(),
            vae=vae(),
            scheduler=scheduler or diffusers.DDIMScheduler(clip_sample=False),
        )
    )


def dit_call(**changes):
    return {
        "class_labels": [3, 7],
        "num_inference_steps": 4,
        "output_type": "pt",
        "generator": torch.Generator().manual_seed(0),
        **changes,
    }


def ddim_pipe(scheduler=None, unet=None):
    pipe = diffusers.DDIMPipeline(unet=unet or unet2d(), scheduler=scheduler or ddim())
    return quiet(pipe)


def ddpm_pipe(scheduler=None, unet=None):
    scheduler = scheduler or diffusers.DDPMScheduler()
    return quiet(diffusers.DDPMPipeline(unet=unet or unet2d(), scheduler=scheduler))


def plain_call(**changes):
    return {
        "batch_size": B,
        "num_inference_steps": 4,
        "output_type": "pt",
        "generator": torch.Generator().manual_seed(0),
        **changes,
    }


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
