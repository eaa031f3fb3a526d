"""Accelerated pipelines: called as before, the same results, nothing left behind."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from perturbed_diffusers import ByHand, Guided  # noqa: E402
from tiny_diffusers import B, filled, pixart, rand, sd  # noqa: E402
from tiny_pipelines import (  # noqa: E402
    PIPES,
    SD_NOISE,
    ddim,
    ddim_pipe,
    ddpm_pipe,
    pixart_pipe,
    plain_call,
    quiet,
    result,
    sd_call,
    sd_pipe,
    sdxl_call,
    sdxl_pipe,
)
from watched import watching  # noqa: E402

LIMIT = 1e-4
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {**SD_NOISE, "clip_sample": False, "steps_offset": 1}),
    "ddim trailing": (
        "DDIMScheduler",
        {**SD_NOISE, "clip_sample": False, "timestep_spacing": "trailing"},
    ),
    "ddpm": ("DDPMScheduler", {**SD_NOISE, "clip_sample": False}),
    "pndm": ("PNDMScheduler", {**SD_NOISE, "skip_prk_steps": True, "steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", SD_NOISE),
    "euler v": (
        "EulerDiscreteScheduler",
        {**SD_NOISE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ),
    "euler ancestral": ("EulerAncestralDiscreteScheduler", SD_NOISE),
    "heun": ("HeunDiscreteScheduler", SD_NOISE),
    "lms": ("LMSDiscreteScheduler", SD_NOISE),
    "dpm++ 2m karras": ("DPMSolverMultistepScheduler", {**SD_NOISE, "use_karras_sigmas": True}),
    "dpm++ 2m idle": (
        "DPMSolverMultistepScheduler",
        {**SD_NOISE, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    ),
    "dpm++ 3m": ("DPMSolverMultistepScheduler", {**SD_NOISE, "solver_order": 3}),
    "dpm++ sde": (
        "DPMSolverMultistepScheduler",
        {**SD_NOISE, "algorithm_type": "sde-dpmsolver++"},
    ),
    "unipc": ("UniPCMultistepScheduler", SD_NOISE),
    "deis": ("DEISMultistepScheduler", SD_NOISE),
    "lcm": ("LCMScheduler", SD_NOISE),
    "tcd": ("TCDScheduler", SD_NOISE),
    "edm": ("EDMEulerScheduler", {}),
    "edm dpm": ("EDMDPMSolverMultistepScheduler", {}),
    "flow unipc": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
}


def check(got, want, limit=LIMIT):
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= limit, error


@pytest.mark.parametrize("family", PIPES)
def test_cfg(family):
    make, call, knob = PIPES[family]
    pipe = make()
    before = result(pipe(**call(**{knob: 5.0})))
    mine = fg.accelerate(pipe, fg.CFG(5.0))
    assert isinstance(mine, type(pipe))
    check(result(mine(**call())), before)
    check(
        result(mine(**call(num_inference_steps=3))),
        result(pipe(**call(**{knob: 5.0}, num_inference_steps=3))),
    )
    assert torch.equal(result(pipe(**call(**{knob: 5.0}))), before)  # the original is as it was
    check(result(fg.guide(pipe)(**call())), result(pipe(**call())))  # its own CFG
    check(result(fg.guide(pipe)(**call(**{knob: 1.0}))), result(pipe(**call(**{knob: 1.0}))))
    check(result(fg.guide(pipe)(**call(**{knob: 3.0}))), result(pipe(**call(**{knob: 3.0}))))


@pytest.mark.parametrize(
    ("name", "eta"),
    [*((name, 0.0) for name in SCHEDULERS), ("ddim", 0.7), ("ddim trailing", 1.0), ("tcd", 0.7)],
)
def test_schedulers(name, eta):
    kind, flags = SCHEDULERS[name]
    pipe = sd_pipe(getattr(diffusers, kind)(**flags))
    for steps in (4, 17):
        call = sd_call(num_inference_steps=steps, eta=eta)
        want = result(pipe(**call, guidance_scale=3.0))
        call = sd_call(num_inference_steps=steps, eta=eta)
        check(result(fg.accelerate(pipe, fg.CFG(3.0))(**call)), want)


@pytest.mark.parametrize("make", [ddim_pipe, ddpm_pipe])
def test_unconditional(make):
    pipe = make()
    check(result(fg.accelerate(pipe)(**plain_call())), result(pipe(**plain_call())))
    with pytest.raises(
        ValueError, match=r"guidance needs a negative condition, but a DD.MPipeline"
    ):
        fg.accelerate(pipe, fg.CFG(2.0))


def test_ddim_with_clipped_output():
    pipe = ddim_pipe(ddim(clip_sample=True))
    for flag in (True, False):
        call = plain_call(use_clipped_model_output=flag, eta=0.4)
        want = result(pipe(**call))
        call = plain_call(use_clipped_model_output=flag, eta=0.4)
        check(result(fg.accelerate(pipe)(**call)), want)


def test_half_precision():
    """As close to fp32 as the original in half precision is."""
    half = torch.bfloat16
    want = result(sd_pipe()(**sd_call(guidance_scale=3.0)))
    pipe = sd_pipe().to(half)
    call = {k: v.to(half) if isinstance(v, torch.Tensor) else v for k, v in sd_call().items()}
    start = torch.randn(B, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    call["latents"] = start.to(half)
    theirs = result(pipe(**call, guidance_scale=3.0)).float()
    mine = result(fg.accelerate(pipe, fg.CFG(3.0))(**call))
    assert mine.dtype == half
    assert (mine.float() - want).norm() <= 1.2 * (theirs - want).norm()


# PAG as diffusers has it, where it is right


def pag_of(kind, pipe, **more):
    parts = {k: v for k, v in pipe.components.items() if v is not None}
    missing = {k: None for k in pipe.components if k not in parts}
    made = getattr(diffusers, kind)(**copy.deepcopy(parts), **missing, **more)
    return quiet(made)


@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize(
    ("family", "kind", "applied", "layers"),
    [
        ("sd", "StableDiffusionPAGPipeline", "mid", "mid"),
        ("sdxl", "StableDiffusionXLPAGPipeline", "mid", "mid"),
        (
            "sdxl",
            "StableDiffusionXLPAGPipeline",
            "up_blocks.0.attentions.1",
            [f"up_blocks.0.attentions.1.transformer_blocks.{i}.attn1" for i in range(2)],
        ),
        ("pixart", "PixArtSigmaPAGPipeline", "blocks.1", "mid"),
    ],
)
def test_pag(family, kind, applied, layers, scale):
    make, call, _ = PIPES[family]
    pipe = make()
    more = {"requires_safety_checker": False} if family == "sd" else {}
    theirs = pag_of(kind, pipe, pag_applied_layers=applied.split(), **more)
    want = result(theirs(**call(guidance_scale=scale, pag_scale=3.0)))
    guidance = fg.PAG(3.0, layers=layers)
    guidance = fg.CFG(scale) + guidance if scale > 1 else guidance
    check(result(fg.accelerate(pipe, guidance)(**call())), want)


def test_a_name_selects_its_layer_alone():
    pipe = pixart_pipe(transformer=pixart(num_layers=12))
    with pytest.raises(ValueError, match=r"layers has .blocks.1., but there is none"):
        fg.accelerate(pipe, fg.PAG(1.0, layers="blocks.1"))
    net = fg.from_diffusers(pipe.transformer, pipe.scheduler).net
    sampler = fg.Sampler(
        fg.from_diffusers(pipe.transformer, pipe.scheduler),
        fg.PAG(1.0, layers="transformer_blocks.1"),
        steps=2,
    )
    branches = sampler.plan.patterns[0].branches
    assert branches[1].layers == ("transformer_blocks.1",)
    assert len(net.stages) == 12 + 3


# Parts that other people put into a U-Net


def controlled(pipe, **changes):
    controlnet = diffusers.ControlNetModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        in_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=24,
        conditioning_embedding_out_channels=(4, 8),
        norm_num_groups=8,
        attention_head_dim=2,
    )
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    return quiet(
        diffusers.StableDiffusionControlNetPipeline(
            **parts, controlnet=filled(controlnet), requires_safety_checker=False, **changes
        )
    )


@pytest.mark.parametrize("guess", [False, True])
def test_controlnet(guess):
    pipe = controlled(sd_pipe())
    call = {"image": rand(1, 3, 32, 32, seed=8).abs().clamp(0, 1), "guess_mode": guess}
    want = result(pipe(**sd_call(**call), guidance_scale=4.0))
    got = result(fg.accelerate(pipe, fg.CFG(4.0))(**sd_call(**call)))
    check(got, want)
    plain = result(sd_pipe()(**sd_call(guidance_scale=4.0)))
    assert (plain - want).abs().max() > 0.01
    check(result(fg.accelerate(pipe, fg.CFG(4.0) + fg.PAG(1e-30))(**sd_call(**call))), want)


def with_ip_adapter(unet, scale=0.7):
    """What `load_ip_adapter` does to a U-Net, with random weights."""
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    processors = {}
    for name, processor in unet.attn_processors.items():
        if name.endswith("attn2.processor"):
            attn = unet.get_submodule(name.rpartition(".")[0])
            processor = IPAdapterAttnProcessor2_0(
                attn.inner_dim, attn.cross_attention_dim, (4,), scale
            )
        processors[name] = processor
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(10, 24, 4)])
    unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return filled(unet)


def test_ip_adapter():
    pipe = sd_pipe(unet=with_ip_adapter(sd()))
    images = [rand(2, 1, 10, seed=5)]
    call = sd_call(ip_adapter_image_embeds=images, guidance_scale=4.0)
    want = result(pipe(**call))
    call = sd_call(ip_adapter_image_embeds=images)
    check(result(fg.accelerate(pipe, fg.CFG(4.0))(**call)), want)
    other = sd_call(ip_adapter_image_embeds=[images[0] + 1.0], guidance_scale=4.0)
    assert (result(pipe(**other)) - want).abs().max() > 10 * LIMIT * want.abs().max()
    pipe.set_ip_adapter_scale(0.0)
    want = result(pipe(**sd_call(ip_adapter_image_embeds=images, guidance_scale=4.0)))
    check(result(fg.accelerate(pipe, fg.CFG(4.0))(**sd_call(ip_adapter_image_embeds=images))), want)


class LowRank(torch.nn.Module):
    """A linear layer with an update beside it, as LoRA's libraries put in its place."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = 0.1 * rand(2, base.in_features, seed=1)
        self.up = rand(base.out_features, 2, seed=2)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + x @ self.down.T @ self.up.T


def with_lora(net):
    for module in net.modules():
        for name in ("to_q", "to_k", "to_v"):
            if isinstance(getattr(module, name, None), torch.nn.Linear):
                setattr(module, name, LowRank(getattr(module, name)))
        if isinstance(getattr(module, "to_out", None), torch.nn.ModuleList):
            module.to_out[0] = LowRank(module.to_out[0])
    return net


def test_low_rank_updates():
    from perturbed_diffusers import Guided, perturbed

    pipe = sd_pipe(unet=with_lora(sd()))
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1"
    for how, guidance in (("identity", fg.PAG(2.0)), (math.inf, fg.SEG(2.0))):
        net = pipe.unet
        pipe.__dict__["unet"] = Guided(net, perturbed(net, [layer], how, (8, 8)), 2.0, 4.0)
        want = result(pipe(**sd_call(guidance_scale=4.0)))
        pipe.__dict__["unet"] = net
        check(result(fg.accelerate(pipe, fg.CFG(4.0) + guidance)(**sd_call())), want)


# Other loops


def test_other_sizes():
    pipe = sd_pipe()
    size = {"height": 40, "width": 24}
    want = result(pipe(**sd_call(**size), guidance_scale=4.0))
    check(result(fg.accelerate(pipe, fg.CFG(4.0))(**sd_call(**size))), want)
    odd = sd_pipe(unet=sd(block_out_channels=(16, 32)))
    start = rand(B, 4, 15, 13)
    call = sd_call(latents=start, height=30, width=26)
    odd.check_inputs = lambda *_, **__: None
    want = result(odd(**call, guidance_scale=4.0))
    check(result(fg.accelerate(odd, fg.CFG(4.0) + fg.PAG(1e-30))(**call)), want)


def test_distilled_guidance():
    """Networks that are told the guidance scale keep their argument."""
    pipe = sd_pipe(
        diffusers.LCMScheduler(**SD_NOISE), sd(time_cond_proj_dim=32, attention_head_dim=2)
    )
    want = result(pipe(**sd_call(guidance_scale=6.0)))
    check(result(fg.accelerate(pipe)(**sd_call(guidance_scale=6.0))), want)
    with pytest.raises(ValueError, match="guidance built in"):
        fg.accelerate(pipe, fg.CFG(2.0))


def test_callbacks():
    """Latents that a callback changes are those that we go on with."""
    pipe = sd_pipe(diffusers.EulerDiscreteScheduler(**SD_NOISE))
    seen = []

    def halve(pipe, step, timestep, kwargs):
        seen.append((step, float(timestep), kwargs["latents"].clone()))
        if step == 1:
            kwargs["latents"] *= 0.5  # in place
        return {"latents": kwargs["latents"] * 0.9} if step == 2 else kwargs

    want = result(pipe(**sd_call(callback_on_step_end=halve), guidance_scale=4.0))
    theirs, seen = seen, []
    got = result(fg.accelerate(pipe, fg.CFG(4.0))(**sd_call(callback_on_step_end=halve)))
    check(got, want)
    for mine, other in zip(seen, theirs, strict=True):
        assert mine[:2] == other[:2]
        check(mine[2], other[2])


@pytest.mark.parametrize(("family", "name"), [("sd", "prompt_embeds"), ("sdxl", "add_text_embeds")])
def test_callbacks_that_change_conditions(family, name):
    make, call, _ = PIPES[family]
    pipe = make()

    def change(pipe, step, timestep, kwargs):
        return {name: 9.0 * kwargs[name]} if step == 1 else {}

    more = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": [name]}
    want = result(pipe(**call(**more, guidance_scale=4.0)))
    check(result(fg.accelerate(pipe, fg.CFG(4.0))(**call(**more))), want)
    plain = result(pipe(**call(guidance_scale=4.0)))
    assert (plain - want).abs().max() > 10 * LIMIT * want.abs().max()


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("guidance", [None, fg.CFG(7.5)], ids=["its own", "given"])
def test_callbacks_that_end_guidance(samples, guidance):
    """As diffusers' guide has it: fewer rows from there on."""
    pipe, rows = sd_pipe(), []

    def end(pipe, step, timestep, kwargs):
        if step == 1:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": kwargs["prompt_embeds"].chunk(2)[-1]}
        return kwargs

    def call(**more):
        more |= {"callback_on_step_end": end}
        found = sd_call(callback_on_step_end_tensor_inputs=["prompt_embeds"], **more)
        return found | {name: found[name][:samples] for name in found if name.endswith("embeds")}

    want = result(pipe(**call()))
    with watching(pipe.unet, ["conv_out"], lambda name, out: rows.append(len(out))):
        check(result(fg.guide(pipe, guidance)(**call())), want)
    assert rows == [2 * samples, 2 * samples, samples, samples]


def test_interrupts():
    pipe = fg.accelerate(sd_pipe(), fg.CFG(4.0))

    def stop(pipe, step, timestep, kwargs):
        pipe._interrupt = step == 1
        return kwargs

    first = result(pipe(**sd_call(callback_on_step_end=stop)))
    pipe._interrupt = False
    assert (first - result(pipe(**sd_call()))).abs().max() > 0.1


def test_an_exception_leaves_nothing_behind():
    pipe = sd_pipe()
    want = result(pipe(**sd_call(guidance_scale=4.0)))
    processors = dict(pipe.unet.attn_processors)
    mine = fg.accelerate(pipe, fg.CFG(4.0) + fg.PAG(2.0))
    good = result(mine(**sd_call()))

    def fail(pipe, step, timestep, kwargs):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        mine(**sd_call(callback_on_step_end=fail))
    assert torch.equal(result(mine(**sd_call())), good)
    assert torch.equal(result(pipe(**sd_call(guidance_scale=4.0))), want)
    assert pipe.unet.attn_processors == processors
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


# Errors


def test_another_scale_than_the_guidance_has():
    pipe = fg.guide(sd_pipe(), fg.CFG(4.0))
    why = r"guidance_scale is 5\.0 in the call, but the guidance has its own: CFG\(scale=4\.0"
    with pytest.raises(ValueError, match=why):
        pipe(**sd_call(guidance_scale=5.0))
    same = result(pipe(**sd_call(guidance_scale=4.0)))
    assert torch.equal(same, result(pipe(**sd_call())))
    with pytest.raises(ValueError, match=r"guidance_rescale is 0\.7 in the call, but"):
        fg.guide(sd_pipe(), fg.CFG(4.0).rescale(0.5))(**sd_call(guidance_rescale=0.7))


def test_what_we_do_not_have_is_an_error():
    pipe = sd_pipe()
    with pytest.raises(ValueError, match="pipe is a dict, but it should be one of"):
        fg.accelerate({})
    with pytest.raises(ValueError, match="guided already"):
        fg.accelerate(fg.accelerate(pipe))
    with pytest.raises(TypeError, match=r"guidance is 5\.0"):
        fg.accelerate(pipe, 5.0)
    with pytest.raises(ValueError, match="but there is none; the names are"):
        fg.accelerate(pipe, fg.PAG(1.0, layers="mid_block.attn"))
    with pytest.raises(ValueError, match="KDPM2DiscreteScheduler"):
        fg.from_diffusers(pipe.unet, diffusers.KDPM2DiscreteScheduler(**SD_NOISE))
    with pytest.raises(TypeError, match="net is a Linear"):
        fg.from_diffusers(torch.nn.Linear(2, 2), pipe.scheduler)


def test_networks_without_stages_by_hand():
    """They run by their modules, and so guidance reaches their layers too."""
    net = sd()
    net.enable_freeu(0.9, 0.2, 1.2, 1.4)
    pipe = sd_pipe(unet=net)
    want = result(pipe(**sd_call(guidance_scale=4.0)))
    check(result(fg.accelerate(pipe, fg.CFG(4.0))(**sd_call())), want)
    for one in (fg.ICG(2.0), fg.PAG(2.0)):
        got = result(fg.accelerate(pipe, fg.CFG(4.0) + one)(**sd_call()))
        assert (got - want).abs().max() > 0.01
    model = fg.from_diffusers(net, pipe.scheduler)
    text = rand(B, 7, 24, seed=1)
    known = {"steps": 4, "seeds": range(B), "negative": -text}
    net.disable_freeu()
    staged = fg.from_diffusers(net, pipe.scheduler)
    net.enable_freeu(1.0, 1.0, 1.0, 1.0)  # enabled, but of no effect
    for guidance in (fg.CFG(4.0), fg.CFG(4.0) + fg.PAG(2.0) + fg.SLG(1.0)):
        check(fg.sample(staged, text, guidance, **known), fg.sample(model, text, guidance, **known))


def test_networks_by_their_blocks():
    """A part that the stages do not know, and a class that has none."""
    gated = sd(attention_type="gated")
    text = {"encoder_hidden_states": rand(B, 7, 24, seed=1)}
    model = fg.from_diffusers(gated, ddim(), (4, 16, 16))
    known = {"steps": 2, "seeds": range(B), "negative": {"encoder_hidden_states": -text[NAME]}}
    off = fg.sample(model, text, fg.CFG(2.0), **known)
    got = fg.sample(model, text, fg.CFG(2.0) + fg.PAG(2.0), **known)
    assert (got - off).abs().max() > 1e-3 * off.abs().max()
    linear = diffusers.StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=12,
        time_proj_dim=8,
        global_states_input_dim=12,
        cross_attention_input_dim=12,
    )
    audio = fg.from_diffusers(linear, ddim(), (4, 8))
    with pytest.raises(ValueError, match="but there is none; the names are"):
        fg.Sampler(audio, fg.PAG(1.0, layers="blocks.0"))
    assert fg.Sampler(audio, fg.PAG(1.0, layers="transformer_blocks.1")).guidance is not None


NAME = "encoder_hidden_states"


def test_another_processor_is_not_passed_by():
    from diffusers.models.attention_processor import AttnProcessor2_0

    class Mine(AttnProcessor2_0):
        def __call__(self, *args, **kwargs):
            return 2.0 * super().__call__(*args, **kwargs)

    net = sd()
    net.set_attn_processor(Mine())
    pipe = sd_pipe(unet=net)
    want = result(pipe(**sd_call(guidance_scale=4.0)))
    check(result(fg.accelerate(pipe, fg.CFG(4.0))(**sd_call())), want)
    # and under PAG it does with the perturbed attention what it does with its own
    other, name = copy.deepcopy(net), "mid_block.attentions.0.transformer_blocks.0.attn1"
    attention = ByHand("identity", (8, 8), "softmax")
    other.get_submodule(name).processor = lambda *args, **kwargs: 2.0 * attention(*args, **kwargs)
    pipe.__dict__["unet"] = Guided(net, other, 2.0, 4.0)
    want = result(pipe(**sd_call(guidance_scale=4.0)))
    pipe.__dict__["unet"] = net
    check(result(fg.accelerate(pipe, fg.CFG(4.0) + fg.PAG(2.0, layers=name))(**sd_call())), want)


# The lower door


def test_from_diffusers():
    net = sd()
    model = fg.from_diffusers(net, ddim())
    assert model.process == fg.VP("scaled_linear", 0.00085, 0.012)
    assert model.shape == (4, 16, 16)
    text, negative = rand(B, 7, 24, seed=1), rand(B, 7, 24, seed=2)
    spacing = fg.leading(offset=1)
    got = fg.sample(
        model,
        text,
        fg.CFG(4.0),
        steps=4,
        spacing=spacing,
        seeds=range(B),
        negative=negative,
        noise=rand(B, 4, 16, 16),
    )
    pipe = sd_pipe(ddim(set_alpha_to_one=True), net)
    want = result(pipe(**sd_call(guidance_scale=4.0, latents=rand(B, 4, 16, 16))))
    check(got, want)
    same = fg.sample(
        model,
        {"text": text},
        fg.CFG(4.0) + fg.PAG(1e-30),
        steps=4,
        spacing=spacing,
        seeds=range(B),
        negative={"text": negative},
        noise=rand(B, 4, 16, 16),
    )
    check(same, want)


def test_autoguidance_in_a_pipeline():
    pipe, weak = sd_pipe(), sd(layers_per_block=2)
    other = fg.from_diffusers(weak, pipe.scheduler)
    got = result(fg.accelerate(pipe, fg.AutoGuidance(other, 2.0))(**sd_call()))
    plain = result(fg.accelerate(pipe)(**sd_call(guidance_scale=1.0)))
    assert (got - plain).abs().max() > 0.1
    same = fg.from_diffusers(pipe.unet, pipe.scheduler)
    check(result(fg.accelerate(pipe, fg.AutoGuidance(same, 2.0))(**sd_call())), plain)


def test_sdxl_sizes():
    pipe = sdxl_pipe()
    call = {"original_size": (64, 48), "target_size": (32, 32), "negative_original_size": (9, 9)}
    call |= {"negative_crops_coords_top_left": (0, 0), "negative_target_size": (32, 32)}
    want = result(pipe(**sdxl_call(**call), guidance_scale=4.0))
    check(result(fg.accelerate(pipe, fg.CFG(4.0))(**sdxl_call(**call))), want)
