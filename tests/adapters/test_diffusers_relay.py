"""Guided in, guided out: schedulers whose steps are not ours take their own, guided by us."""

from __future__ import annotations

import inspect
import threading

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from tiny_controls import of_parts, picture  # noqa: E402
from tiny_diffusers import unet2d  # noqa: E402
from tiny_pipelines import (  # noqa: E402
    PIPES,
    SD_NOISE,
    ddim,
    made,
    plain_call,
    result,
    sd3_call,
    sd3_pipe,
    sd_call,
    sd_pipe,
)

LIMIT = 1e-4


def off(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def scheduler_of(name, **flags):
    kind = getattr(diffusers, name)
    named = "beta_schedule" in inspect.signature(kind.__init__).parameters
    return kind(**(SD_NOISE if named else {}), **flags)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "name", "flags"),
    [
        ("sd", "DPMSolverSDEScheduler", {"noise_sampler_seed": 3}),
        ("sd", "DPMSolverSinglestepScheduler", {}),
        ("sd", "KDPM2AncestralDiscreteScheduler", {}),
        ("sd", "SASolverScheduler", {}),
        ("sd", "IPNDMScheduler", {}),
        ("sd", "CosineDPMSolverMultistepScheduler", {}),
        ("sd", "DDIMInverseScheduler", {}),
        ("sd", "DPMSolverMultistepScheduler", {"solver_type": "heun"}),
        ("sd", "UniPCMultistepScheduler", {"disable_corrector": [0]}),
        ("sdxl", "KDPM2DiscreteScheduler", {}),
        ("pixart", "SASolverScheduler", {}),
        ("dit", "DPMSolverSinglestepScheduler", {}),
        ("sd3", "FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        ("flux", "FlowMatchLCMScheduler", {}),
    ],
)
def test_any_scheduler_is_guided(family, name, flags):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    make, call, knob = PIPES[family]
    pipe = make(scheduler_of(name, **flags))

    def run(pipe, scale):
        torch.manual_seed(0)  # pipelines of Flux give their scheduler no generator
        return result(pipe(**call(**{knob: scale})))

    want = run(pipe, 4.0)
    assert off(run(fg.guide(pipe), 4.0), want) <= LIMIT
    assert off(run(pipe, 6.0), want) > 10 * LIMIT


class Own(diffusers.DDIMScheduler):
    """The steps of its base, of which we cannot know it."""

    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)


@pytest.mark.parametrize(
    "guidance",
    [
        fg.CFG(4.0, schedule=fg.interval(200.0, 800.0, over="t")) + fg.PAG(2.0),
        fg.APG(fg.CFG(4.0), radius=15.0, momentum=-0.5),
        fg.CFG(4.0).rescale(0.7),
        fg.CFG(3.0) + fg.SAG(0.7, mask="random"),
        fg.TSG(2.0),
    ],
    ids=["interval", "apg", "rescale", "sag", "tsg"],
)
def test_every_method_is_as_with_steps_of_ours(guidance):
    plain = sd_pipe()
    want = result(fg.guide(plain, guidance)(**sd_call()))
    pipe = sd_pipe(Own.from_config(ddim().config), plain.unet)
    assert off(result(fg.guide(pipe, guidance)(**sd_call())), want) <= LIMIT


def test_a_step_that_was_put_on_the_scheduler():
    pipe = sd_pipe()
    plain = result(pipe(**sd_call(guidance_scale=4.0)))
    old = pipe.scheduler.step

    def step(*args, **kwargs):
        return (0.7 * old(*args, **kwargs)[0],)

    pipe.scheduler.step = step
    want = result(pipe(**sd_call(guidance_scale=4.0)))
    assert off(result(fg.guide(pipe)(**sd_call(guidance_scale=4.0))), want) <= LIMIT
    assert off(plain, want) > 10 * LIMIT


class Halves:
    """A scheduler of flows with nothing of diffusers': half of what is left at each step."""

    order, init_noise_sigma = 1, 1.0

    def __init__(self):
        self.config = {"num_train_timesteps": 1000}

    def set_timesteps(self, num_inference_steps=None, device=None):
        sigmas = [0.5**i for i in range(num_inference_steps)]
        self.timesteps = 1000.0 * torch.tensor(sigmas, device=device)

    def scale_noise(self, sample, timestep, noise):
        sigma = timestep.reshape(-1, 1, 1, 1) / 1000.0
        return (1.0 - sigma) * sample + sigma * noise

    def step(self, model_output, timestep, sample, return_dict=True):
        return (sample - timestep / 2000.0 * model_output,)


def with_halves(pipe):
    pipe.__dict__["scheduler"] = Halves()
    return pipe


def test_a_scheduler_of_ones_own():
    pipe = with_halves(sd3_pipe())
    want = result(pipe(**sd3_call(guidance_scale=4.0)))
    assert off(result(fg.guide(pipe)(**sd3_call(guidance_scale=4.0))), want) <= LIMIT
    steps = fg.CFG(4.0, schedule=fg.interval(0.0, 0.6, over="step"))
    assert off(result(fg.guide(pipe, steps)(**sd3_call())), want) > 10 * LIMIT
    for guidance in (fg.CFG(4.0, schedule=fg.interval(0.3, 5.0)), fg.APG(fg.CFG(4.0)), fg.TSG(2.0)):
        with pytest.raises(ValueError, match=r"does not say what noise its network's input holds"):
            fg.guide(pipe, guidance)(**sd3_call())


def test_a_scheduler_of_ones_own_that_begins_later():
    """It is told no begin: the network's first time tells where the run is."""
    parts = sd3_pipe()
    parts.vae.register_to_config(shift_factor=0.1)
    pipe = with_halves(of_parts("StableDiffusion3Img2ImgPipeline", parts))
    call = {"image": picture(16), "strength": 0.5, "num_inference_steps": 4, "guidance_scale": 4.0}
    torch.manual_seed(0)
    want = result(pipe(**sd3_call(**call)))
    torch.manual_seed(0)
    assert off(result(fg.guide(pipe)(**sd3_call(**call))), want) <= LIMIT


def test_a_run_of_pndm_that_begins_later():
    scheduler = diffusers.PNDMScheduler(**SD_NOISE, skip_prk_steps=True, steps_offset=1)
    pipe = of_parts("StableDiffusionImg2ImgPipeline", sd_pipe(scheduler))
    call = {"image": picture(32), "strength": 0.6, "num_inference_steps": 8, "guidance_scale": 4.0}
    want = result(pipe(**sd_call(**call)))
    assert off(result(fg.guide(pipe)(**sd_call(**call))), want) <= LIMIT


def test_a_learned_variance_reaches_the_scheduler():
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    pipe = made("DDPMPipeline", unet=unet2d(out_channels=6), scheduler=scheduler)
    want = result(pipe(**plain_call()))
    assert bool(want.isfinite().all())
    assert off(result(fg.guide(pipe)(**plain_call())), want) <= LIMIT


def test_samples_that_are_not_finite_are_an_error():
    pipe = sd_pipe(scheduler_of("KDPM2DiscreteScheduler"))

    def spoil(pipe, step, timestep, kwargs):
        if step == 1:
            kwargs["latents"][1] = float("nan")
        return kwargs

    with pytest.raises(fg.NonFiniteError, match="1 of 2 samples"):
        fg.guide(pipe)(**sd_call(callback_on_step_end=spoil))


def test_threads():
    """Each run has a scheduler of its own, with what it keeps."""
    guided = fg.guide(sd_pipe(scheduler_of("SASolverScheduler")))

    def call(number):
        generator = torch.Generator().manual_seed(number)
        return sd_call(generator=generator, guidance_scale=2.0 + number)

    want = [result(guided(**call(number))) for number in range(4)]
    got: list = [None] * 4

    def one(number):
        got[number] = result(guided(**call(number)))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
