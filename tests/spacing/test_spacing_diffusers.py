"""Spacings and processes against the schedulers of diffusers, which compute in fp32."""

import math

import numpy as np
import pytest

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

SD = fg.VP("scaled_linear", 0.00085, 0.012)
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
FP32 = 2e-5  # of sigmas that come from fp32 products of 1000 factors


def times(levels):
    return [level.t for level in levels.points[:-1]]


def ratios(levels):
    return [level.ratio for level in levels.points]


def euler(steps, **options):
    scheduler = diffusers.EulerDiscreteScheduler(**CONFIG, **options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [1, 4, 10, 25, 50, 1000])
def test_timestep_spacings(steps):
    for spacing, name, offset in (
        (fg.leading, "leading", 0),
        (fg.leading(offset=1), "leading", 1),
        (fg.trailing, "trailing", 0),
        (fg.linspace, "linspace", 0),
    ):
        if steps == 1 and name == "linspace":
            continue  # diffusers then starts at t = 0
        if steps == 1000 and offset:
            continue  # diffusers then starts beyond the last timestep
        theirs = euler(steps, timestep_spacing=name, steps_offset=offset)
        levels = spacing.run(SD, steps)
        assert times(levels) == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
        if name != "linspace":  # between timesteps, diffusers interpolates sigma, not its log
            assert ratios(levels) == pytest.approx(theirs.sigmas.tolist(), rel=FP32)


@pytest.mark.parametrize(
    ("spacing", "option"),
    [
        (fg.karras, "use_karras_sigmas"),
        (fg.exponential, "use_exponential_sigmas"),
        (fg.beta(over="sigma"), "use_beta_sigmas"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_sigma_spacings(spacing, option, steps):
    if spacing.name == "beta":
        pytest.importorskip("scipy")
    if steps > 1:  # of one step, diffusers knows only the lowest sigma
        theirs = euler(steps, timestep_spacing="linspace", **{option: True})
        levels = spacing.run(SD, steps)
        assert ratios(levels) == pytest.approx(theirs.sigmas.tolist(), rel=FP32)
        assert times(levels) == pytest.approx(theirs.timesteps.tolist(), abs=5e-3)
    bounds = {"sigma_min": 0.05, "sigma_max": 10.0}
    theirs = euler(steps, timestep_spacing="linspace", **{option: True}, **bounds)
    levels = spacing(**bounds).run(SD, steps)
    assert ratios(levels) == pytest.approx(theirs.sigmas.tolist(), rel=FP32)


def test_exponential_is_even_in_the_lambda_of_dpm_solver():
    theirs = diffusers.DPMSolverMultistepScheduler(
        **CONFIG, use_lu_lambdas=True, timestep_spacing="linspace", final_sigmas_type="zero"
    )
    theirs.set_timesteps(12)
    assert ratios(fg.exponential.run(SD, 12)) == pytest.approx(theirs.sigmas.tolist(), rel=FP32)


@pytest.mark.parametrize("spacing", [fg.karras, fg.exponential], ids=repr)
def test_edm_spacings(spacing):
    theirs = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_schedule=spacing.name
    )
    theirs.set_timesteps(18)
    assert ratios(spacing.run(fg.EDM(), 18)) == pytest.approx(theirs.sigmas.tolist(), rel=FP32)


@pytest.mark.parametrize("betas", sorted(NAMES))
def test_zero_terminal_snr(betas):
    theirs = diffusers.DDIMScheduler(beta_schedule=NAMES[betas], rescale_betas_zero_snr=True)
    ours = fg.VP(betas, zero_terminal_snr=True)
    # theirs are 1 minus fp32 numbers
    assert ours.beta_table == pytest.approx(theirs.betas.tolist(), rel=0.0, abs=5e-6)
    abar = [ours.level(t).alpha ** 2 for t in range(1000)]
    assert abar == pytest.approx(theirs.alphas_cumprod.tolist(), rel=FP32)
    assert abar[-1] == theirs.alphas_cumprod[-1] == 0.0


def test_given_betas():
    betas = np.linspace(0.001, 0.05, 40).tolist()
    theirs = diffusers.DDIMScheduler(num_train_timesteps=40, trained_betas=betas)
    ours = fg.VP.from_betas(betas)
    abar = [ours.level(t).alpha ** 2 for t in range(40)]
    assert abar == pytest.approx(theirs.alphas_cumprod.tolist(), rel=FP32)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_shifts(steps):
    given = np.linspace(1.0, 1.0 / steps, steps).tolist()
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=given)
    ours = [level.t for level in fg.shifted(shift=3.0).run(fg.Flow(), steps).points]
    assert ours == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    for tokens in (256, 1024, 4096, 10000):
        mu = 0.5 + 0.65 * (tokens - 256) / 3840
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        theirs.set_timesteps(sigmas=given, mu=mu)
        levels = fg.shifted_by_size(tokens=tokens).run(fg.Flow(), steps)
        assert [p.t for p in levels.points] == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
        static = fg.shifted(shift=math.exp(mu)).run(fg.Flow(), steps)
        assert [p.t for p in levels.points] == pytest.approx([p.t for p in static.points])
