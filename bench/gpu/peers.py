"""diffusers' own pipelines on networks of its own, of the same size and with random weights."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from shapes import Shape
from torch import Tensor

PIPELINES = {
    "CFG": "StableDiffusionXLPipeline",
    "CFG and PAG": "StableDiffusionXLPAGPipeline",
}


def why_no_diffusers(network: str, method: str) -> str | None:
    """Why there is no such peer here; None where there is."""
    if importlib.util.find_spec("diffusers") is None:
        return "diffusers is not installed"
    if network != "SDXL":
        return f"its pipeline for {network} is not one that returns latents"
    return None if method in PIPELINES else f"it has no {method}"


def unet_config(shape: Shape) -> dict[str, Any]:
    """What diffusers calls the parts of a `Shape`."""
    with_text = [depth > 0 for depth in shape.depths]
    down = ["CrossAttnDownBlock2D" if text else "DownBlock2D" for text in with_text]
    up = ["CrossAttnUpBlock2D" if text else "UpBlock2D" for text in reversed(with_text)]
    ids = shape.added // 6 // 8 * 8  # of the pooled vector's parts, those of the six sizes
    return {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": shape.widths,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "layers_per_block": shape.res_blocks,
        "transformer_layers_per_block": tuple(max(depth, 1) for depth in shape.depths),
        "cross_attention_dim": shape.context,
        "attention_head_dim": tuple(shape.heads(width) for width in shape.widths),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": min(256, ids),
        "projection_class_embeddings_input_dim": shape.added,
    }


class DiffusersPeer:
    """SDXL's pipeline for a `loops.Setting`; its samples are those of another network."""

    def __init__(self, network: str, method: str, setting: Any) -> None:
        import diffusers

        shape: Shape = setting.network.text
        config = unet_config(shape)
        with torch.device(setting.device):
            net = diffusers.UNet2DConditionModel(**config).to(setting.dtype).eval()
            vae = diffusers.AutoencoderKL(
                block_out_channels=(8,), norm_num_groups=4, latent_channels=4
            ).to(setting.dtype)
        scheduler = diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
        )
        parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        more = {"pag_applied_layers": ["mid"]} if "PAG" in method else {}
        pipe = getattr(diffusers, PIPELINES[method])(
            vae=vae, unet=net, scheduler=scheduler, add_watermarker=False, **parts, **more
        )
        pipe.set_progress_bar_config(disable=True)
        pooled = shape.added - 6 * config["addition_time_embed_dim"]
        text, vector = setting.cond
        self.call = {
            "prompt_embeds": text,
            "negative_prompt_embeds": torch.zeros_like(text),
            "pooled_prompt_embeds": vector[:, :pooled],
            "negative_pooled_prompt_embeds": torch.zeros_like(vector[:, :pooled]),
            "num_inference_steps": setting.steps,
            "guidance_scale": 4.0,
            "latents": setting.noise.to(setting.dtype),
            "height": 8 * setting.network.shape[1],
            "width": 8 * setting.network.shape[2],
            "output_type": "latent",
        }
        if "PAG" in method:
            self.call["pag_scale"] = 3.0
        self.pipe = pipe

    def run(self) -> Tensor:
        """Its latents."""
        with torch.no_grad():
            return self.pipe(**self.call).images
