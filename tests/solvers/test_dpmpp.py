"""The widely used forms of DPM-Solver++, step by step as their formulas say."""

import itertools
import math

import pytest
import torch

import fastguide as fg

PROCESS = fg.EDM(0.0292, 14.6146)
LEVELS = fg.make_levels(PROCESS, 12, fg.karras)


def denoiser(x, t, c=None):
    return torch.tanh(x / (1 + t.reshape(-1, 1, 1, 1) ** 2))


MODEL = fg.Model(denoiser, PROCESS, fg.Prediction("x0"), (3, 4, 4))


def draws():
    g = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, 4, 4, generator=g)
    return start, [torch.randn(2, 3, 4, 4, generator=g) for _ in range(11)]


def at(x, sigma):
    return denoiser(x, torch.full((2,), sigma, dtype=torch.float64))


def three_m_sde(start, noises, eta=1.0, s_noise=1.0, half=0.5):
    """y' = e^-h(1+eta) y + ..., with phi_3 of the second difference by k-diffusion's halves."""
    sigmas = [p.sigma for p in LEVELS.points]
    x, past = start.double() * sigmas[0], []
    for i, (s, to) in enumerate(itertools.pairwise(sigmas)):
        d = at(x, s)
        if to == 0:
            return d
        h = math.log(s / to)
        e = h * (1 + eta)
        x = math.exp(-e) * x - math.expm1(-e) * d
        second = math.expm1(-e) / e + 1
        if len(past) > 1:
            (d1, h1), (d2, h2) = past[-1], past[-2]
            a, b = (d - d1) * h / h1, (d1 - d2) * h / h2
            bend = (a - b) / (h1 / h + h2 / h)
            third = (second / e - 0.5) * 2 * half
            x = x + second * (a + bend * h1 / h) - third * bend
        elif past:
            x = x + second * (d - past[-1][0]) * h / past[-1][1]
        if eta:
            x = x + noises[i] * to * math.sqrt(-math.expm1(-2 * h * eta)) * s_noise
        past.append((d, h))


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.9)])
def test_3m_sde_is_the_widely_used_one(eta, s_noise, published):
    start, noises = draws()
    want = three_m_sde(start, noises, eta, s_noise, 0.5 if published else 1.0)
    solver = fg.dpmpp_3m_sde(published=published, eta=eta, s_noise=s_noise)
    sampler = fg.Sampler(MODEL, solver=solver, levels=LEVELS)
    got = sampler(None, range(2), noise=start, step_noise=noises)
    assert ((got - want).abs().max() / want.abs().max()).item() < 2e-6


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_2m_sde_has_both_rules_and_any_eta(eta, solver_type):
    start, noises = draws()
    sigmas = [p.sigma for p in LEVELS.points]
    x, past = start.double() * sigmas[0], None
    for i, (s, to) in enumerate(itertools.pairwise(sigmas)):
        d = at(x, s)
        if to == 0:
            x = d
            break
        h = math.log(s / to)
        e = h * (1 + eta)
        x = to / s * math.exp(-h * eta) * x - math.expm1(-e) * d
        if past is not None:
            slope = (d - past[0]) * h / past[1]
            gain = math.expm1(-e) / e + 1 if solver_type == "heun" else -0.5 * math.expm1(-e)
            x = x + gain * slope
        x = x + noises[i] * to * math.sqrt(-math.expm1(-2 * h * eta))
        past = (d, h)
    solver = fg.dpmpp_2m_sde(eta=eta, solver_type=solver_type)
    sampler = fg.Sampler(MODEL, solver=solver, levels=LEVELS)
    given = noises if eta else None
    got = sampler(None, range(2), noise=start, step_noise=given)
    assert ((got - x).abs().max() / x.abs().max()).item() < 2e-6
    if eta == 0.0:
        ode = fg.sample(
            MODEL,
            solver=fg.dpmpp_2m(solver_type=solver_type),
            levels=LEVELS,
            noise=start,
            seeds=range(2),
        )
        assert torch.allclose(ode, got, atol=1e-6)


def test_a_rule_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="solver_type is 'trapezoid'"):
        list(fg.dpmpp_2m(solver_type="trapezoid").run(LEVELS))
