"""Accelerated pipelines of diffusers against the pipelines themselves: Stable Diffusion 1.5 and
PixArt in shape, a few hundred ms a step of one thread; CPU seconds.

The twins: the pipeline with its own CFG; for PAG diffusers' PAG pipelines; for SEG the same with
processors that do it right (diffusers' hook never perturbs). All are checked to give the same.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from torch.nn import functional as F

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.benchmark(timer=time.process_time)  # other jobs share the machine
STEPS = 2
SD = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128, 256, 256),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
PIXART = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "cross_attention_dim": 192,
    "caption_channels": 4096,
    "use_additional_conditions": False,
}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def randomised(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return net.eval().requires_grad_(False)


def vae():
    config = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    return diffusers.AutoencoderKL(**config)


def sd(kind="StableDiffusionPipeline", unet=None, **more):
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None}
    pipe = getattr(diffusers, kind)(
        vae=vae(),
        unet=unet or randomised(diffusers.UNet2DConditionModel(**SD)),
        scheduler=scheduler,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
        **more,
    )
    return quiet(pipe)


def pixart(kind="PixArtSigmaPipeline", transformer=None, **more):
    pipe = getattr(diffusers, kind)(
        tokenizer=None,
        text_encoder=None,
        vae=vae(),
        transformer=transformer or randomised(diffusers.PixArtTransformer2DModel(**PIXART)),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        **more,
    )
    return quiet(pipe)


def call_sd(**changes):
    return {
        "prompt_embeds": torch.ones(1, 77, 768),
        "negative_prompt_embeds": torch.zeros(1, 77, 768),
        "num_inference_steps": STEPS,
        "output_type": "latent",
        "latents": torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1)),
        "height": 32,
        "width": 32,
        **changes,
    }


def call_pixart(**changes):
    return {
        **call_sd(),
        "prompt": None,
        "negative_prompt": None,
        "prompt_embeds": torch.ones(1, 120, 4096),
        "negative_prompt_embeds": torch.zeros(1, 120, 4096),
        "prompt_attention_mask": torch.ones(1, 120),
        "negative_prompt_attention_mask": torch.ones(1, 120),
        "use_resolution_binning": False,
        **changes,
    }


class SmoothedQueries:
    """CFG and SEG at infinity in one batch of three rows, as PAG's processors of diffusers do."""

    def __call__(self, attn, hidden_states, *_, **__):
        x = hidden_states
        q, k, v = (y.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for y in self.qkv(attn, x))
        third = len(q) // 3 * 2
        q = torch.cat([q[:third], q[third:].mean(2, keepdim=True).expand_as(q[third:])])
        z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[0](z)

    def qkv(self, attn, x):
        return attn.to_q(x), attn.to_k(x), attn.to_v(x)


FAMILIES = {
    "SD": (sd, call_sd, "unet", "StableDiffusionPAGPipeline", "mid", 0.93),
    "PixArt": (pixart, call_pixart, "transformer", "PixArtSigmaPAGPipeline", "blocks.14", 0.87),
}


def images(pipe, call):
    return lambda: pipe(**call).images


def same(ours, theirs):
    mine, other = ours(), theirs()
    assert (mine - other).abs().max() <= 1e-3 * other.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_cfg(ratio, family):
    """The same rows: what our loop costs or saves."""
    make, call, *_ = FAMILIES[family]
    pipe = make()
    theirs = images(pipe, call(guidance_scale=5.0))
    ours = images(fg.accelerate(pipe, fg.CFG(5.0)), call())
    same(ours, theirs)
    ratio(f"diffusers {family}, CFG", ours, theirs, limit=1.01, rounds=11)


@pytest.mark.parametrize("family", FAMILIES)
def test_cfg_and_pag(ratio, family):
    """Three rows from the middle on, two before it."""
    make, call, net, kind, layer, limit = FAMILIES[family]
    pipe = make()
    net = {net: getattr(pipe, net)}
    ours = images(fg.accelerate(pipe, fg.CFG(5.0) + fg.PAG(3.0)), call())
    mine = ours()
    twin = make(kind, **net, pag_applied_layers=[layer])
    theirs = images(twin, call(guidance_scale=5.0, pag_scale=3.0))
    other = theirs()
    assert (mine - other).abs().max() <= 1e-3 * other.abs().max()
    ratio(f"diffusers {family}, CFG and PAG from the middle", ours, theirs, limit=limit)


@pytest.mark.parametrize("family", FAMILIES)
def test_cfg_and_seg(ratio, family):
    """The same with one query a head."""
    make, call, net, kind, layer, limit = FAMILIES[family]
    pipe = make()
    net = {net: getattr(pipe, net)}
    ours = images(fg.accelerate(pipe, fg.CFG(5.0) + fg.SEG(3.0)), call())
    mine = ours()
    twin = make(kind, **net, pag_applied_layers=[layer])
    processors = (SmoothedQueries(), SmoothedQueries())
    twin.set_pag_applied_layers([layer], pag_attn_processors=processors)
    theirs = images(twin, call(guidance_scale=5.0, pag_scale=3.0))
    other = theirs()
    assert (mine - other).abs().max() <= 1e-3 * other.abs().max()
    ratio(f"diffusers {family}, CFG and SEG from the middle", ours, theirs, limit=limit)


@pytest.mark.parametrize("family", FAMILIES)
def test_cfg_in_an_interval(ratio, family):
    """CFG in half of the steps: a row less in the other half."""
    make, call, *_ = FAMILIES[family]
    pipe = make()
    low = {"SD": 300, "PixArt": 600}[family]  # of the timesteps 501 and 1, and of 999 and 500
    half = fg.CFG(5.0, schedule=fg.interval(low, 1000, over="t"))
    ours = images(fg.accelerate(pipe, half), call())
    theirs = images(pipe, call(guidance_scale=5.0))
    ours()
    ratio(f"diffusers {family}, CFG in half of the steps", ours, theirs, limit=0.78)


class Nothing(torch.nn.Module):
    """A network that costs nothing."""

    def __init__(self, like):
        super().__init__()
        self.config, self.dtype, self.device = like.config, torch.float32, torch.device("cpu")
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True, **_):
        return (sample,)


def test_host_time(ratio):
    """What a step costs beside the network."""
    pipe = sd()
    pipe.__dict__["unet"] = Nothing(pipe.unet)
    steps = 50
    ours = images(fg.accelerate(pipe, fg.CFG(5.0)), call_sd(num_inference_steps=steps))
    theirs = images(pipe, call_sd(num_inference_steps=steps, guidance_scale=5.0))
    ours(), theirs()
    seconds = {name: [] for name in ("ours", "theirs")}
    for _ in range(15):
        for name, run in (("ours", ours), ("theirs", theirs)):
            start = time.process_time()
            run()
            seconds[name].append((time.process_time() - start) / steps)
    for name, values in seconds.items():
        print(f"host time outside the network, {name}: {1e3 * statistics.median(values):.3f} ms")
    ratio("diffusers SD, host time outside the network", ours, theirs, rounds=25)
