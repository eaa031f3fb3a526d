"""Every sampler of k-diffusion against ours: the same sigmas, denoiser, start and noise."""

from __future__ import annotations

import k_diffusion_sampling
import pytest
import torch

import fastguide as fg

theirs = k_diffusion_sampling.load()
SHAPE = (2, 3, 4, 4)
PROCESS = fg.EDM(0.03, 15.0)
LEVELS = fg.make_levels(PROCESS, 8, fg.karras)
LIMIT = 1e-5


def denoiser(x, sigma):
    """A bounded one that bends in x and in sigma."""
    sigma = sigma.reshape(-1, 1, 1, 1)
    return torch.tanh((x - 0.3) / (1.0 + sigma**2)) + 0.1 * torch.cos(x / (1.0 + sigma))


MODEL = fg.Model(lambda x, t, cond=None: denoiser(x, t), PROCESS, fg.Prediction("x0"), SHAPE[1:])


def drawn(count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def compare(levels, solver, sampler, **options):
    """Ours in fp32, theirs in fp64; `options` may have a `noise_sampler` made of the draws."""
    start, *noises = drawn(40)
    run = fg.Sampler(MODEL, solver=solver, levels=levels)
    count = sum(row.draws for row in run.plan.rows[1:])
    ours = run(None, range(2), noise=start, step_noise=noises[:count] or None)
    sigmas = torch.tensor([p.sigma for p in levels.points], dtype=torch.float64)
    made = options.pop("noises", None)
    if made is not None:
        options["noise_sampler"] = made(iter(noises))
    x = start.double() * sigmas[0]
    if sampler is theirs.sample_dpm_fast:
        ends = (sigmas[-1].item(), sigmas[0].item(), len(sigmas) - 1)
        want = sampler(denoiser, x, *ends, disable=True, **options)
    else:
        want = sampler(denoiser, x, sigmas, disable=True, **options)
    error = ((ours - want).abs().max() / want.abs().max()).item()
    assert error <= LIMIT, error
    return count


def one_each(noises):
    return lambda *_: next(noises).double()


def one_path(noises):
    """Increments of one Brownian path over sigma, divided by their standard deviation."""
    path = {}  # visited from above, each level once

    def at(sigma):
        near = min(path, key=lambda known: abs(known - sigma), default=sigma)
        if near not in path:
            path[sigma] = torch.zeros(SHAPE, dtype=torch.float64)
        elif abs(near - sigma) > 1e-9:
            last = min(path)
            path[sigma] = path[last] + (last - sigma) ** 0.5 * next(noises).double()
            near = sigma
        return path[near]

    def increment(now, to):
        start = at(float(now))
        return (at(float(to)) - start) / (float(now) - float(to)) ** 0.5

    return increment


@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        ("euler", fg.euler, {}),
        ("heun", fg.heun, {}),
        ("lms", fg.lms(order=3), {"order": 3}),
        ("dpm_2", fg.dpm_2, {}),
        ("dpmpp_2m", fg.dpmpp_2m, {}),
        ("dpmpp_2s_ancestral", fg.dpmpp_2s_ancestral(eta=0.0), {"eta": 0.0}),
        ("dpmpp_sde", fg.dpmpp_sde(eta=0.0, r=0.3), {"eta": 0.0, "r": 0.3, "noises": one_each}),
        ("dpmpp_2m_sde", fg.dpmpp_2m_sde(eta=0.0), {"eta": 0.0, "noises": one_each}),
    ],
)
def test_without_noise(name, solver, options):
    assert compare(LEVELS, solver, getattr(theirs, f"sample_{name}"), **options) == 0


@pytest.mark.parametrize("amount", [{"eta": 1.0, "s_noise": 1.0}, {"eta": 0.6, "s_noise": 1.1}])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler_ancestral", {}),
        ("dpm_2_ancestral", {}),
        ("dpmpp_2s_ancestral", {}),
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", {"solver_type": "heun"}),
        ("dpmpp_3m_sde", {}),
    ],
)
def test_with_noise(name, options, amount):
    solver = getattr(fg, name)(**options, **amount)
    if name == "dpmpp_3m_sde":
        solver = solver(published=True)
    sampler = getattr(theirs, f"sample_{name}")
    assert compare(LEVELS, solver, sampler, noises=one_each, **options, **amount) == 7


@pytest.mark.parametrize("r", [0.5, 0.7])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_sde_adds_increments_of_one_path(r, eta):
    options = {"r": r, "eta": eta, "s_noise": 0.9}
    solver = fg.dpmpp_sde(**options)
    assert compare(LEVELS, solver, theirs.sample_dpmpp_sde, noises=one_path, **options) == 14


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn(name, monkeypatch):
    _, *noises = drawn(40)
    left = iter(noises)
    raised = [i for i, p in enumerate(LEVELS.points[:-1]) if 0.1 <= p.sigma <= 5.0]

    step = iter(range(8))

    def randn(x):  # theirs draws at every step, and uses it where it raises
        return next(left).double() if next(step) in raised else torch.zeros_like(x)

    monkeypatch.setattr(theirs.torch, "randn_like", randn)
    options = {"s_noise": 1.02}
    solver = getattr(fg, name)(churn=4.0, s_min=0.1, s_max=5.0, **options)
    options |= {"s_churn": 4.0, "s_tmin": 0.1, "s_tmax": 5.0}
    sampler = getattr(theirs, f"sample_{name}")
    assert compare(LEVELS, solver, sampler, **options) == len(raised) > 2


@pytest.mark.parametrize("points", [7, 8, 9])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_fast(points, eta):
    levels = fg.Levels(PROCESS, fg.make_levels(PROCESS, points, fg.karras).points[:-1])
    options = {"eta": eta, "noises": one_each}
    drew = compare(levels, fg.dpm_fast(eta=eta), theirs.sample_dpm_fast, **options)
    assert (drew > 0) == (eta > 0)
