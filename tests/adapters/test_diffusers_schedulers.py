"""Every mapped scheduler, with its flags, against its own steps: same network, start and noise."""

from __future__ import annotations

import pytest
import torch

import fastguide as fg
from fastguide.adapters.diffusers.schedulers import course_of, meaning_of

diffusers = pytest.importorskip("diffusers")
SHAPE = (2, 3, 4, 4)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LIMIT = 1e-4
TURBO = {**SD, "timestep_spacing": "trailing"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


class Tiny(torch.nn.Module):
    """A smooth random network of 3 channels."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.mix = torch.randn(3, 3, generator=generator)
        self.shift = torch.randn(3, 1, 1, generator=generator)

    def forward(self, x, t, cond=None):
        phase = self.shift + 0.003 * t.float().reshape(-1, 1, 1, 1)
        return torch.sin(torch.einsum("oc,bchw->bohw", self.mix, x) + phase)


CASES = [
    ("DDIMScheduler", {**SD, "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}),
    ("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False}),
    ("DDIMScheduler", {**TURBO, "clip_sample": False, "prediction_type": "v_prediction"}),
    ("DDIMScheduler", {"timestep_spacing": "linspace", "clip_sample_range": 2.0}),
    ("DDIMScheduler", {**SD, "thresholding": True, "sample_max_value": 1.5}),
    (
        "DDIMScheduler",
        {**TURBO, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ),
    ("DDPMScheduler", {"clip_sample": True}),
    ("DDPMScheduler", {**SD, "variance_type": "fixed_large", "clip_sample": False}),
    ("DDPMScheduler", {**SD, "variance_type": "fixed_small_log", "prediction_type": "sample"}),
    ("PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    ("PNDMScheduler", {"num_train_timesteps": 1200, "set_alpha_to_one": True}),
    ("EulerDiscreteScheduler", SD),
    ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {**TURBO, "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {**TURBO, "prediction_type": "sample"}),
    ("EulerAncestralDiscreteScheduler", TURBO),
    ("HeunDiscreteScheduler", {**SD, "use_karras_sigmas": True}),
    ("HeunDiscreteScheduler", {**SD, "clip_sample": True}),
    ("LMSDiscreteScheduler", {**SD, "use_exponential_sigmas": True}),
    ("DPMSolverMultistepScheduler", SD),
    ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {**SD, "solver_order": 3, "final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {**SD, "use_lu_lambdas": True, "thresholding": True}),
    (
        "DPMSolverMultistepScheduler",
        {**SD, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
    ),
    ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    (
        "DPMSolverMultistepScheduler",
        {**SD, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3},
    ),
    ("DPMSolverMultistepScheduler", FLOW),
    ("UniPCMultistepScheduler", {**SD, "final_sigmas_type": "sigma_min"}),
    (
        "UniPCMultistepScheduler",
        {**SD, "solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
    ),
    ("UniPCMultistepScheduler", {**SD, "use_karras_sigmas": True}),
    (
        "UniPCMultistepScheduler",
        {**SD, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
    ),
    ("UniPCMultistepScheduler", FLOW),
    ("DEISMultistepScheduler", SD),
    ("DEISMultistepScheduler", {**SD, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("LCMScheduler", {}),
    ("LCMScheduler", {"clip_sample": True, "prediction_type": "v_prediction"}),
    ("EDMEulerScheduler", {"sigma_min": 0.01, "sigma_max": 20.0}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_schedule": "exponential"}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
]


def theirs(scheduler, sample, net, begin, drawn, **kwargs):
    """Their loop; what their steps draw comes from `drawn`."""
    import sys

    if begin:
        scheduler.set_begin_index(begin)
    module = sys.modules[type(scheduler).__module__]
    given, before = iter(drawn), getattr(module, "randn_tensor", None)
    if before is not None:
        module.randn_tensor = lambda *_, **__: next(given).clone()
    try:
        for t in scheduler.timesteps[begin:]:
            x = sample
            if hasattr(scheduler, "scale_model_input"):
                x = scheduler.scale_model_input(sample, t)
            prediction = net(x, t.expand(SHAPE[0]))
            sample = scheduler.step(prediction, t, sample, **kwargs).prev_sample
    finally:
        if before is not None:
            module.randn_tensor = before
    return sample


def compare(name, flags, steps, begin=0, **kwargs):
    scheduler = getattr(diffusers, name)(**flags)
    scheduler.set_timesteps(steps)
    meaning = meaning_of(scheduler)
    course = course_of(
        scheduler, begin, kwargs.get("eta", 0.0), kwargs.get("use_clipped_model_output", False)
    )
    net = Tiny()
    scale = 1000.0 if isinstance(meaning.process, fg.Flow) else 1.0
    times = iter(course.times)

    def ours_net(x, t, cond):
        return net(x, torch.full_like(t, scale * next(times)))

    model = fg.Model(ours_net, meaning.process, meaning.prediction, SHAPE[1:])
    sampler = fg.Sampler(model, solver=course.solver, levels=course.levels, clamp=meaning.clamp)
    drawn = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(60)]
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(99))
    first = next(at.at for at in sampler.plan.rows if at.at is not None)
    draws = sum(row.draws for row in sampler.plan.rows[1:])
    mine = sampler(None, range(SHAPE[0]), noise=start, step_noise=drawn[:draws])
    assert next(times, None) is None
    assert len(course.times) + course.idle == len(scheduler.timesteps) - begin
    x = start * (first.sigma if not isinstance(meaning.process, fg.VP) else 1.0)
    x = x / first.alpha if meaning.scaled else x
    end = course.levels.points[-1].alpha if meaning.scaled else 1.0
    reference = theirs(scheduler, x, net, begin, drawn, **kwargs)
    error = ((mine / end - reference).abs().max() / reference.abs().max()).item()
    assert error <= LIMIT, error


@pytest.mark.parametrize("steps", [4, 10, 20, 30])
@pytest.mark.parametrize(
    ("name", "flags"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)]
)
def test_scheduler(name, flags, steps):
    compare(name, flags, steps)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["DDIMScheduler", "TCDScheduler"])
def test_eta(name, eta):
    compare(name, {"clip_sample": False}, 10, eta=eta)


def test_clipped_output():
    compare("DDIMScheduler", {"clip_sample": True}, 10, use_clipped_model_output=True)


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("EulerDiscreteScheduler", 3),
        ("DPMSolverMultistepScheduler", 3),
        ("HeunDiscreteScheduler", 4),
        ("UniPCMultistepScheduler", 3),
        ("EulerAncestralDiscreteScheduler", 3),
    ],
)
def test_a_run_that_begins_later(name, begin):
    compare(name, SD, 12, begin)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("KDPM2DiscreteScheduler", {}, "the scheduler is a KDPM2DiscreteScheduler, but it should"),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "solver_type 'heun'"),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned"}, "variance_type 'learned'"),
        ("UniPCMultistepScheduler", {"predict_x0": False}, "predict_x0 False"),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, r"disable_corrector \[0\]"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type 'learned_range'"),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "prediction_type 'v_pred"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas True"),
        ("PNDMScheduler", {"timestep_spacing": "trailing"}, "timestep_spacing 'trailing'"),
        (
            "PNDMScheduler",
            {"num_train_timesteps": 907, "set_alpha_to_one": True},
            "skip_prk_steps False with steps of 129",
        ),
    ],
)
def test_what_we_do_not_have_is_an_error(name, flags, message):
    scheduler = getattr(diffusers, name)(**flags)
    scheduler.set_timesteps(7)
    with pytest.raises(ValueError, match=message):
        meaning_of(scheduler), course_of(scheduler)
