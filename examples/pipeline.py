"""A pipeline of diffusers, guided by what diffusers itself does not have.

    python examples/pipeline.py PATH "a lighthouse in a storm" --out pipeline.png

PATH is what `DiffusionPipeline.from_pretrained` takes: a folder, or a name on the Hugging Face hub.
Without it, a tiny Stable Diffusion with random weights shows that all of it runs. Needs
`pip install 'fastguide[diffusers]'`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

import fastguide as fg


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("model", nargs="?", help="a folder or a name; tiny random weights if none")
    options.add_argument("prompt", nargs="?", default="a lighthouse in a storm")
    options.add_argument("--negative", default="blurry")
    options.add_argument("--guidance-scale", type=float, default=5.0)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--out", type=Path, default=Path("pipeline.png"))
    chosen = options.parse_args()

    if chosen.model is None:
        pipe, texts = tiny()
    else:
        pipe = pretrained(chosen.model)
        texts = {"prompt": chosen.prompt, "negative_prompt": chosen.negative}
    pipe.set_progress_bar_config(disable=True)

    # the same components: what is done to `pipe` (LoRA, schedulers, hooks) is done to `guided` too
    guided = fg.guide(pipe, fg.SEG(3.0, layers="mid"))
    image = guided(
        **texts,
        guidance_scale=chosen.guidance_scale,
        num_inference_steps=chosen.steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(chosen.out)
    print(f"CFG({chosen.guidance_scale:g}) + SEG(3) in {chosen.steps} steps: {chosen.out}")


def pretrained(name: str) -> Any:
    """The pipeline, on a GPU in half precision where there is one."""
    from diffusers import DiffusionPipeline

    if not torch.cuda.is_available():
        return DiffusionPipeline.from_pretrained(name)
    return DiffusionPipeline.from_pretrained(name, torch_dtype=torch.float16).to("cuda")


def tiny() -> tuple[Any, dict[str, torch.Tensor]]:
    """Stable Diffusion with small networks and random weights, and random embeddings in place of
    prompts: noise, but in a second.
    """
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    )
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        unet=unet,
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8),
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    texts = torch.randn(2, 1, 77, 32)
    return pipe, {"prompt_embeds": texts[0], "negative_prompt_embeds": texts[1]}


if __name__ == "__main__":
    main()
