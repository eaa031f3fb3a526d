"""CFG++: the guided image, renoised with the negative branch's noise."""

import exact
import pytest
import torch

import fastguide as fg

LABELS = torch.tensor([0, 1, 1])


def start(model, levels):
    scale = 1.0 if isinstance(model.process, fg.VP) else levels.points[0].sigma
    return scale * fg.noise(range(3), model.shape)


def images(model, x, level, guidance_scale):
    """(guided, unconditional) denoised images at `level`, by the plain formulas."""
    prediction = model.prediction
    a, b = prediction.denoised(level)
    t = torch.full((3,), prediction.net_time(level))
    scaled = prediction.input_scale(level) * x
    cond = model.net(scaled, t, LABELS)
    uncond = model.net(scaled, t, torch.full_like(LABELS, model.null))
    guided = uncond + guidance_scale * (cond - uncond)
    return a * x + b * guided, a * x + b * uncond


@pytest.mark.parametrize("scale", [0.6, 1.0, 1.7])
def test_ddim_is_the_plain_formula(process, scale):
    """Also at scale 1, where CFG alone would not run the unconditional rows."""
    model = exact.two_classes(process)
    levels = fg.karras(sigma_max=10.0).run(process, 8)
    x = start(model, levels)
    for now, to in levels.steps():
        guided, uncond = images(model, x, now, scale)
        x = to.alpha * guided + to.sigma * (x - now.alpha * uncond) / now.sigma
    sampler = fg.Sampler(model, fg.CFG(scale), fg.ddim_cfgpp, levels=levels)
    assert sampler.plan.net_rows == 2 * 8 - (scale == 1.0)  # the last step reads no negative
    torch.testing.assert_close(sampler(LABELS, range(3)), x, rtol=1e-4, atol=1e-5)


def test_2m_is_the_plain_formula():
    """In y = x, r = sigma: y' = guided + e^-h (y - uncond) + (1 - e^-h) (guided - old) h / 2 h0."""
    process = exact.PROCESSES["edm"]
    model = exact.two_classes(process)
    levels = fg.karras.run(process, 8)
    x, old, before = start(model, levels), None, None
    for now, to in levels.steps():
        guided, uncond = images(model, x, now, 0.6)
        if to.sigma == 0.0:
            x = guided
            break
        ratio = to.sigma / now.sigma
        h = -torch.tensor(ratio).log()
        new = guided + ratio * (x - uncond)
        if old is not None:
            new = new + (1 - ratio) * (guided - old) * h / (2 * before)
        x, old, before = new, uncond, h
    got = fg.sample(model, LABELS, fg.CFG(0.6), fg.dpmpp_2m_cfgpp, levels=levels, seeds=range(3))
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-5)


def test_ancestral_draws_and_differs():
    model = exact.two_classes(exact.PROCESSES["edm"])
    runs = [
        fg.sample(model, LABELS, fg.CFG(0.6), solver, steps=8, seeds=range(3))
        for solver in (
            fg.euler_ancestral_cfgpp,
            fg.euler_ancestral_cfgpp(eta=0.0),
            fg.ddim_cfgpp,
            fg.ddim,
        )
    ]
    torch.testing.assert_close(runs[1], runs[2])
    assert (runs[0] - runs[1]).abs().max() > 1e-3
    assert (runs[2] - runs[3]).abs().max() > 1e-3


def test_without_guidance_it_is_ddim():
    model = exact.two_classes(exact.PROCESSES["flow"])
    one, other = (
        fg.sample(model, LABELS, None, solver, steps=8, seeds=range(3))
        for solver in (fg.ddim_cfgpp, fg.ddim)
    )
    torch.testing.assert_close(one, other)


def test_one_step_of_cfgpp_is_cfg_with_an_effective_scale():
    """CFG's weight omega in one step equals CFG++'s scale lambda if
    omega = lambda alpha' s / (alpha' s - alpha s')."""
    process = exact.PROCESSES["vp"]
    model = exact.two_classes(process)
    now, to = process.level(700.0), process.level(600.0)
    levels = fg.Levels(process, (now, to))
    scale = 0.6
    effective = scale * to.alpha * now.sigma / (to.alpha * now.sigma - now.alpha * to.sigma)
    one = fg.sample(model, LABELS, fg.CFG(scale), fg.ddim_cfgpp, levels=levels, seeds=range(3))
    other = fg.sample(model, LABELS, fg.CFG(effective), fg.ddim, levels=levels, seeds=range(3))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
