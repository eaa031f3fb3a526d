"""Whole runs against diffusers' schedulers: the same levels, network, start and noise, in fp32."""

from __future__ import annotations

import math

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")
SHAPE = (2, 3, 4, 4)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = fg.VP("scaled_linear", 0.00085, 0.012)
LIMIT = 1e-4


class Tiny(torch.nn.Module):
    """A smooth random network: 3 channels to 3, or to 6 with a variance in [-1, 1]."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.mix = torch.randn(outputs, 3, generator=generator)
        self.shift = torch.randn(outputs, 1, 1, generator=generator)

    def forward(self, x, t, cond=None):
        phase = self.shift + 0.003 * t.float().reshape(-1, 1, 1, 1)
        return torch.sin(torch.einsum("oc,bchw->bohw", self.mix, x) + phase)


def level(sigma, t):
    """A VP level from sigma / alpha."""
    alpha = 1.0 / math.hypot(1.0, sigma)
    return fg.Level(float(t), alpha, sigma * alpha)


def at(scheduler, t):
    """A VP level from the scheduler's own table."""
    alpha_bar = float(scheduler.alphas_cumprod[int(t)].double())
    return fg.Level(float(t), math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))


def by_sigmas(scheduler, process=VP):
    sigmas, times = scheduler.sigmas.double().tolist(), scheduler.timesteps.tolist()
    points = [level(s, t) for s, t in zip(sigmas, [*times, 0.0], strict=True)]
    return fg.Levels(process, tuple(points))


class Timeless(Tiny):
    """Theirs evaluates between timesteps at a time of its own."""

    def forward(self, x, t, cond=None):
        return super().forward(x, 0.0 * t)


def by_two(scheduler):
    """Levels of a scheduler that repeats each sigma for the second evaluation of a step."""
    outer = dict.fromkeys(scheduler.sigmas.double().tolist())  # the last is 0
    return fg.Levels(VP, tuple(map(VP.at_ratio, outer)))


def ours(levels, solver, prediction, net, noises=None, clamp=None, variance=False):
    model = fg.Model(net, levels.process, fg.Prediction(prediction), SHAPE[1:], variance=variance)
    sampler = fg.Sampler(model, solver=solver, levels=levels, clamp=clamp)
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return sampler(None, range(SHAPE[0]), noise=start, step_noise=noises), start


def theirs(scheduler, start, net, scale=1.0, **kwargs):
    sample = start * scale
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(sample, t)
        prediction = net(x, t.expand(SHAPE[0]))
        sample = scheduler.step(prediction, t, sample, **kwargs).prev_sample
    return sample


def check(mine, reference):
    error = ((mine - reference).abs().max() / reference.abs().max()).item()
    assert error <= LIMIT, error


@pytest.fixture
def noises(monkeypatch):
    """The noise that a scheduler draws, in order, and the same as a list for us."""
    drawn = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(100)]

    def patch(module):
        left = iter(drawn)
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(left).clone())
        return drawn

    return patch


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim(prediction, to_one):
    scheduler = diffusers.DDIMScheduler(
        **SD, clip_sample=False, set_alpha_to_one=to_one, steps_offset=1, prediction_type=prediction
    )
    scheduler.set_timesteps(20)
    end = fg.Level(0.0, 1.0, 0.0) if to_one else at(scheduler, 0)
    levels = fg.Levels(VP, (*(at(scheduler, t) for t in scheduler.timesteps), end))
    name = {"epsilon": "eps", "v_prediction": "v"}[prediction]
    mine, start = ours(levels, fg.ddim, name, Tiny())
    check(mine, theirs(scheduler, start, Tiny()))


@pytest.mark.parametrize("rederive", [True, False])
def test_ddim_with_a_clamp(rederive):
    scheduler = diffusers.DDIMScheduler(**SD, clip_sample=True, steps_offset=1)
    scheduler.set_timesteps(20)
    levels = fg.Levels(
        VP, (*(at(scheduler, t) for t in scheduler.timesteps), fg.Level(0.0, 1.0, 0.0))
    )
    mine, start = ours(levels, fg.ddim(rederive=rederive), "eps", Tiny(), clamp=1.0)
    check(mine, theirs(scheduler, start, Tiny(), use_clipped_model_output=rederive))


def test_ddim_with_dynamic_thresholding():
    scheduler = diffusers.DDIMScheduler(
        **SD, clip_sample=False, steps_offset=1, thresholding=True, sample_max_value=1.5
    )
    scheduler.set_timesteps(20)
    levels = fg.Levels(
        VP, (*(at(scheduler, t) for t in scheduler.timesteps), fg.Level(0.0, 1.0, 0.0))
    )
    threshold = fg.DynamicThreshold(0.995, ceiling=1.5)
    mine, start = ours(levels, fg.ddim, "eps", Tiny(), clamp=threshold)
    check(mine, theirs(scheduler, start, Tiny(), use_clipped_model_output=True))


@pytest.mark.parametrize(
    ("kind", "variance"),
    [("fixed_small", "small"), ("fixed_large", "large"), ("learned_range", "learned")],
)
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm(kind, variance, clip, noises):
    import diffusers.schedulers.scheduling_ddpm as module

    learned = variance == "learned"
    scheduler = diffusers.DDPMScheduler(**SD, variance_type=kind, clip_sample=clip)
    scheduler.set_timesteps(20)
    assert int(scheduler.timesteps[-1]) == 0
    levels = fg.Levels(
        VP, (*(at(scheduler, t) for t in scheduler.timesteps), fg.Level(0.0, 1.0, 0.0))
    )
    net = Tiny(6 if learned else 3)
    drawn = noises(module)[:19]
    solver = fg.ddpm(variance=variance)
    mine, start = ours(levels, solver, "eps", net, drawn, 1.0 if clip else None, learned)
    check(mine, theirs(scheduler, start, net))


@pytest.mark.parametrize("skip", [True, False])
def test_pndm(skip):
    scheduler = diffusers.PNDMScheduler(
        **SD, skip_prk_steps=skip, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(20)
    grid = [*range(951, 0, -50)]
    levels = fg.Levels(VP, (*(at(scheduler, t) for t in grid), at(scheduler, 0)))
    mine, start = ours(levels, fg.pndm(warmup=not skip), "eps", Tiny())
    check(mine, theirs(scheduler, start, Tiny()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("karras", [True, False])
def test_euler(prediction, karras):
    scheduler = diffusers.EulerDiscreteScheduler(
        **SD, prediction_type=prediction, use_karras_sigmas=karras
    )
    scheduler.set_timesteps(20)
    levels = by_sigmas(scheduler)
    name = {"epsilon": "eps", "v_prediction": "v"}[prediction]
    mine, start = ours(levels, fg.euler, name, Tiny())
    check(mine, theirs(scheduler, start, Tiny(), scale=1 / levels.points[0].alpha))


def test_euler_ancestral(noises):
    import diffusers.schedulers.scheduling_euler_ancestral_discrete as module

    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD)
    scheduler.set_timesteps(20)
    levels = by_sigmas(scheduler)
    drawn = noises(module)
    mine, start = ours(levels, fg.euler_ancestral, "eps", Tiny(), drawn[:19])
    check(mine, theirs(scheduler, start, Tiny(), scale=1 / levels.points[0].alpha))


def test_heun():
    scheduler = diffusers.HeunDiscreteScheduler(**SD)
    scheduler.set_timesteps(12)
    sigmas, times = scheduler.sigmas.double().tolist(), scheduler.timesteps.tolist()
    points = [level(sigmas[0], times[0])]
    points += [level(s, t) for s, t in zip(sigmas[1:-1:2], times[1::2], strict=True)]
    levels = fg.Levels(VP, (*points, fg.Level(0.0, 1.0, 0.0)))
    mine, start = ours(levels, fg.heun(over="ratio"), "eps", Tiny())
    check(mine, theirs(scheduler, start, Tiny(), scale=1 / points[0].alpha))


@pytest.mark.parametrize(
    ("kind", "order", "solver"),
    [
        ("dpmsolver++", 1, fg.ddim),
        ("dpmsolver++", 2, fg.dpmpp_2m),
        ("dpmsolver++", 3, fg.dpmpp_3m(published=True)),
        ("dpmsolver", 2, fg.dpm_2m),
        ("dpmsolver", 3, fg.dpm_3m(published=True)),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpm_solver_multistep(kind, order, solver, prediction):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD,
        algorithm_type=kind,
        solver_order=order,
        prediction_type=prediction,
        final_sigmas_type="zero" if kind == "dpmsolver++" else "sigma_min",
    )
    scheduler.set_timesteps(20)
    name = {"epsilon": "eps", "v_prediction": "v"}[prediction]
    mine, start = ours(by_sigmas(scheduler), solver, name, Tiny())
    check(mine, theirs(scheduler, start, Tiny()))


def test_dpm_solver_sde(noises):
    import diffusers.schedulers.scheduling_dpmsolver_multistep as module

    scheduler = diffusers.DPMSolverMultistepScheduler(**SD, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(20)
    drawn = noises(module)
    mine, start = ours(by_sigmas(scheduler), fg.dpmpp_2m_sde, "eps", Tiny(), drawn[:19])
    check(mine, theirs(scheduler, start, Tiny()))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("variant", "final"), [("bh1", "sigma_min"), ("bh2", "sigma_min"), ("bh2", "zero")]
)
def test_unipc(order, variant, final):
    scheduler = diffusers.UniPCMultistepScheduler(
        **SD, solver_order=order, solver_type=variant, final_sigmas_type=final
    )
    scheduler.set_timesteps(20)
    solver = fg.unipc(order=order, variant=variant, lower_order_final=True)
    mine, start = ours(by_sigmas(scheduler), solver, "eps", Tiny())
    check(mine, theirs(scheduler, start, Tiny()))


def test_lms():
    scheduler = diffusers.LMSDiscreteScheduler(**SD)
    scheduler.set_timesteps(20)
    levels = by_sigmas(scheduler)
    mine, start = ours(levels, fg.lms, "eps", Tiny())
    check(mine, theirs(scheduler, start, Tiny(), scale=1 / levels.points[0].alpha))


@pytest.mark.parametrize("order", [2, 3])
def test_deis(order):
    scheduler = diffusers.DEISMultistepScheduler(**SD, solver_order=order, lower_order_final=False)
    scheduler.set_timesteps(20)
    sigmas, times = scheduler.sigmas.double().tolist(), scheduler.timesteps.tolist()
    levels = fg.Levels(VP, tuple(level(s, t) for s, t in zip(sigmas, [*times, 0], strict=True)))
    mine, start = ours(levels, fg.deis(order=order), "eps", Tiny())
    check(mine, theirs(scheduler, start, Tiny()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(20)
    levels = fg.Levels(fg.Flow(), tuple(map(fg.Flow().level, scheduler.sigmas.double().tolist())))
    net = Tiny()

    def in_thousands(x, t, cond):
        return net(x, 1000.0 * t)

    mine, sample = ours(levels, fg.euler, "flow", in_thousands)
    for t in scheduler.timesteps:
        sample = scheduler.step(net(sample, t.expand(SHAPE[0])), t, sample).prev_sample
    check(mine, sample)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("EDMEulerScheduler", fg.euler),
        ("EDMDPMSolverMultistepScheduler", fg.dpmpp_2m),
    ],
)
def test_edm(name, solver):
    scheduler = getattr(diffusers, name)(sigma_min=0.01, sigma_max=20.0)
    scheduler.set_timesteps(20)
    process = fg.EDM(0.01, 20.0)
    levels = fg.Levels.from_sigmas(process, scheduler.sigmas.double().tolist()[:-1])
    mine, start = ours(levels, solver, "edm", Tiny())
    check(mine, theirs(scheduler, start, Tiny(), scale=float(scheduler.sigmas[0])))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
@pytest.mark.parametrize(("steps", "final"), [(9, "sigma_min"), (10, "zero")])
def test_dpm_solver_single_step(algorithm, kind, order, steps, final):
    if algorithm == "dpmsolver" and final == "zero":
        pytest.skip("theirs is NaN there")
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        **SD,
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=kind,
        final_sigmas_type=final,
        lower_order_final=True,
    )
    scheduler.set_timesteps(steps)
    single = fg.dpmpp_single if algorithm == "dpmsolver++" else fg.dpm_single
    solver = single(order=order, solver_type=kind, inner="levels", lower_order_final=True)
    mine, start = ours(by_sigmas(scheduler), solver, "eps", Tiny())
    check(mine, theirs(scheduler, start, Tiny()))


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (2, 2), (3, 4)])
@pytest.mark.parametrize("tau", [0.0, 0.8])
def test_sa_solver(predictor, corrector, tau, noises):
    import diffusers.schedulers.scheduling_sasolver as module

    scheduler = diffusers.SASolverScheduler(
        **SD,
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda t: tau if 200 <= t <= 800 else 0.0,
        algorithm_type="data_prediction",
    )
    scheduler.set_timesteps(10)
    levels = by_sigmas(scheduler)
    inside = [
        i
        for i, t in enumerate(scheduler.timesteps.tolist())
        if 200 <= t <= 800  # theirs draws at every step, and ours where it is used
    ]
    drawn = [one for i, one in enumerate(noises(module)) if i in inside] if tau else None
    ratios = [levels.points[i].ratio for i in inside]
    solver = fg.sa_solver(
        tau=tau,
        s_min=ratios[-1] * 0.999,
        s_max=ratios[0] * 1.001,
        predictor_order=predictor,
        corrector_order=corrector,
        simple_order_2=True,
        lower_order_final=True,
    )
    mine, start = ours(levels, solver, "eps", Tiny(), drawn)
    check(mine, theirs(scheduler, start, Tiny()))


def test_ipndm():
    betas = [0.95, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.0]
    scheduler = diffusers.IPNDMScheduler(trained_betas=betas)
    scheduler.set_timesteps(len(betas) - 1)
    levels = fg.Levels(
        VP,
        tuple(
            fg.Level(float(t), math.sqrt(1 - b * b), b)
            for b, t in zip(betas, [*scheduler.timesteps.tolist(), 0.0], strict=True)
        ),
    )
    mine, start = ours(levels, fg.ipndm(to_data=True), "v", Tiny())
    check(mine, theirs(scheduler, start, Tiny()))


def test_kdpm2():
    scheduler = diffusers.KDPM2DiscreteScheduler(**SD)
    scheduler.set_timesteps(8)
    levels, net = by_two(scheduler), Timeless()
    mine, start = ours(levels, fg.dpm_2, "eps", net)
    check(mine, theirs(scheduler, start, net, scale=1 / levels.points[0].alpha))


def test_kdpm2_ancestral(noises):
    import diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete as module

    scheduler = diffusers.KDPM2AncestralDiscreteScheduler(**SD)
    scheduler.set_timesteps(8)
    levels, net = by_two(scheduler), Timeless()
    mine, start = ours(levels, fg.dpm_2_ancestral, "eps", net, noises(module)[:7])
    check(mine, theirs(scheduler, start, net, scale=1 / levels.points[0].alpha))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_on_the_noise(order, variant):
    scheduler = diffusers.UniPCMultistepScheduler(
        **SD,
        solver_order=order,
        solver_type=variant,
        predict_x0=False,
        final_sigmas_type="sigma_min",
        disable_corrector=[0, 1],
    )
    scheduler.set_timesteps(10)
    solver = fg.unipc(
        order=order, variant=variant, over="noise", uncorrected=2, lower_order_final=True
    )
    mine, start = ours(by_sigmas(scheduler), solver, "eps", Tiny())
    check(mine, theirs(scheduler, start, Tiny()))
