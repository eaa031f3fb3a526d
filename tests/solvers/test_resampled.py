"""Solvers that go back up: restarts, RePaint's resampling, and predictors beside Langevin steps."""

import math

import exact
import pytest
import torch

import fastguide as fg
from fastguide import reference
from fastguide.engine.plan import make_plan
from fastguide.nets import GaussianMixture

MEAN, STD = 0.7, 0.6


@pytest.fixture(params=sorted(exact.PROCESSES))
def process(request):
    return exact.PROCESSES[request.param]


def gaussian(process):
    prediction = exact.prediction_for(process)
    mean = torch.full((1, 1), MEAN, dtype=torch.float64)
    return GaussianMixture(mean, [STD], [1.0], process, prediction), prediction


def flow(now, to, x):
    """The probability flow of N(MEAN, STD^2) from one level to another."""

    def spread(level):
        return math.hypot(level.alpha * STD, level.sigma)

    return to.alpha * MEAN + spread(to) / spread(now) * (x - now.alpha * MEAN)


def raises(plan):
    return [e for e, row in enumerate(plan.rows) if e and row.at is None]


@pytest.mark.parametrize(("inner", "order"), [("euler", 1), ("heun", 2)])
def test_restart_is_of_its_solvers_order(process, inner, order):
    """Beside the exact flow down, up by the plan's own noise, and down again, twice."""
    net, prediction = gaussian(process)
    start = torch.linspace(-2, 2, 500, dtype=torch.float64).unsqueeze(1)
    low, high = process.at_ratio(0.2), process.at_ratio(0.8)
    errors = []
    for steps in (16, 32, 64):
        ratios = [1.5 * (0.2 / 1.5) ** (i / steps) for i in range(steps + 1)]
        points = (*map(process.at_ratio, ratios[:-1]), low)
        levels = fg.Levels(process, points)
        solver = fg.restart(times=2, t_min=0.2, t_max=0.8, steps=steps, solver=inner)
        plan = make_plan(prediction, levels, solver, dtype=torch.float64)
        x = (1.0 if isinstance(process, fg.VP) else points[0].sigma) * start
        x = flow(points[0], low, x)
        for e in raises(plan):
            noise = reference.noise(torch.arange(500), e, 1).view(500, 1)
            lift = high.alpha / low.alpha
            x = lift * x + math.sqrt(high.sigma**2 - (lift * low.sigma) ** 2) * noise
            x = flow(high, low, x)
        out = exact.run_in_fp64(levels, solver, net, prediction, start)
        errors.append((out - x).norm().item())  # over many draws, which are others for each N
    assert len(raises(plan)) == 2
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.2), errors


def test_restart_is_the_published_algorithm():
    """Xu et al. 2023, algorithm 1, on EDM levels by hand, steps by Heun (EDM, algorithm 2)."""
    process = fg.EDM()
    net, prediction = gaussian(process)
    sigmas = [2.0, 1.0, 0.3, 0.1, 0.05]
    levels = fg.Levels.from_sigmas(process, sigmas)
    solver = fg.restart(times=3, t_min=0.11, t_max=0.4, steps=2)
    plan = make_plan(prediction, levels, solver)
    noises = iter(reference.noise(torch.arange(3), e, 1).view(3, 1) for e in raises(plan))
    start = torch.tensor([[-1.0], [0.2], [1.4]], dtype=torch.float64)

    def slope(x, sigma):
        shrunk = STD**2 / (STD**2 + sigma**2)
        return (x - (MEAN + shrunk * (x - MEAN))) / sigma

    def down(x, sigma, to):
        d = slope(x, sigma)
        euler = x + (to - sigma) * d
        return euler if to == 0.0 else x + (to - sigma) * (d + slope(euler, to)) / 2

    x = sigmas[0] * start
    middle = (0.5 * (0.4 ** (1 / 7) + 0.1 ** (1 / 7))) ** 7  # Karras's rho 7, half of two steps
    for now, to in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        x = down(x, now, to)
        if to == 0.1:
            for _ in range(3):
                x = x + math.sqrt(0.4**2 - 0.1**2) * next(noises)
                x = down(down(x, 0.4, middle), middle, 0.1)
    got = exact.run_in_fp64(levels, solver, net, prediction, start)
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "solver", [fg.restart(times=2, steps=8), fg.resampled(times=3, jump=4, solver="heun")]
)
def test_the_law_is_kept(process, solver):
    """Samples have the mean and variance of the data, to four standard errors and the steps."""
    net, prediction = gaussian(process)
    count = 4_000
    levels = fg.karras(sigma_min=0.02, sigma_max=15.0).run(process, 40)
    start = fg.noise(range(count), (1,)).double()
    out = exact.run_in_fp64(levels, solver, net, prediction, start)
    assert out.mean().item() == pytest.approx(MEAN, abs=4 * STD / count**0.5 + 0.02)
    assert out.var().item() == pytest.approx(STD**2, rel=4 * math.sqrt(2 / count) + 0.05)


def test_the_way_up_has_noise_of_its_own():
    """Neither a learned variance nor a gradient is a matter of the process."""
    process = fg.VP("linear")
    levels = fg.make_levels(process, 6)
    solver = fg.resampled(times=2, jump=2, solver=fg.ddpm(variance="learned"))
    plain = list(fg.ddpm(variance="learned").run(levels))
    updates = list(solver.run(levels))
    ups = [u for u in updates if u.at is None]
    assert len(ups) == 3
    assert all(u.spread == 0.0 for u in ups)
    high, low = levels.points[0], levels.points[2]
    lift = high.alpha / low.alpha
    assert ups[0].x == pytest.approx(
        {"x": lift, "noise": math.sqrt(high.sigma**2 - (lift * low.sigma) ** 2)}
    )
    assert [(u.x, u.spread) for u in updates if u.at][:2] == [(u.x, u.spread) for u in plain[:2]]
    model = exact.two_classes(fg.EDM(0.1, 5.0))
    led = fg.ClassifierGuidance(lambda x, t: x.flatten(1)[:, :2], 1.0, form="mean")
    with pytest.raises(ValueError, match="form is 'mean'"):
        fg.Sampler(model, led, fg.restart(steps=2), steps=12)


@pytest.mark.parametrize("outer", [fg.resampled(times=2, jump=1), fg.restart(t_max=0.5, steps=2)])
def test_the_solver_within_goes_by_its_name(outer):
    levels = fg.karras(sigma_min=0.03, sigma_max=3.0).run(fg.EDM(), 8)
    one = list(outer(solver="ddim:eta=0.5").run(levels))
    assert one == list(outer(solver=fg.ddim(eta=0.5)).run(levels))
    with pytest.raises(ValueError, match="solver is 'none', but it should be one of"):
        list(outer(solver="none").run(levels))
    with pytest.raises(TypeError, match=r"solver is 3, but it should be a solver such as"):
        list(outer(solver=3).run(levels))


def test_reverse_diffusion_is_the_published_rule():
    """score_sde's ReverseDiffusionPredictor on VP, discretised: f = (sqrt(1 - beta) - 1) x,
    G = sqrt(beta), x' = x - f + G^2 score + G n; at the last step without the noise.
    """
    process = fg.VP("linear")
    net, prediction = gaussian(process)
    levels = fg.make_levels(process, 5)
    solver = fg.predictor_corrector(corrections=0, predictor="reverse")
    start = torch.tensor([[-1.0], [0.5]], dtype=torch.float64)
    got = exact.run_in_fp64(levels, solver, net, prediction, start)
    x = start
    for k, (now, to) in enumerate(levels.steps(), 1):
        beta = 1.0 - (now.alpha / to.alpha) ** 2
        score = -(x - now.alpha * MEAN) / (now.alpha**2 * STD**2 + now.sigma**2)
        noise = reference.noise(torch.arange(2), k, 1).view(2, 1)
        if to.sigma == 0.0:
            x = (x + now.sigma**2 * score) / now.alpha  # the denoised image
            continue
        x = (2.0 - math.sqrt(1.0 - beta)) * x + beta * score + math.sqrt(beta) * noise
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def test_the_solver_within_has_no_spacing_of_its_own():
    with pytest.raises(ValueError, match="should be one without a spacing"):
        list(fg.restart(solver="DPM++ 2M Karras").run(fg.make_levels(fg.EDM(), 8)))
