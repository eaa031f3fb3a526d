"""Solvers: their algebra, their measured order on an exact Gaussian, their statistics."""

import math
from itertools import pairwise

import exact
import pytest
import torch

import fastguide as fg
from fastguide.nets import GaussianMixture
from fastguide.solvers import SOLVERS, solver_by_name
from fastguide.solvers.dpmpp import growth

MEAN, STD = 0.7, 0.6


def gaussian(process):
    prediction = exact.prediction_for(process)
    mean = torch.full((1, 1), MEAN, dtype=torch.float64)
    return GaussianMixture(mean, [STD], [1.0], process, prediction), prediction


def flow_of_gaussian(now, to, x):
    """The exact probability-flow ODE of N(MEAN, STD^2) from one level to another."""

    def spread(level):
        return math.hypot(level.alpha * STD, level.sigma)

    return to.alpha * MEAN + spread(to) / spread(now) * (x - now.alpha * MEAN)


def error(process, solver, steps):
    """Largest error at the data of runs from 9 start values, in double precision."""
    net, prediction = gaussian(process)
    # a range in which the denoised image bends, so that start-up errors show at few steps too
    levels = fg.karras(rho=3.0, sigma_min=0.2, sigma_max=1.5).run(process, steps)
    levels = fg.Levels(process, levels.points[:-1])
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    out = exact.run_in_fp64(levels, solver, net, prediction, start)
    first, last = levels.points[0], levels.points[-1]
    std = 1.0 if isinstance(process, fg.VP) else first.sigma
    return (out - flow_of_gaussian(first, last, std * start)).abs().max().item()


@pytest.mark.parametrize(
    ("solver", "order"),
    [(fg.ddim, 1), (fg.euler, 1), (fg.heun, 2), (fg.dpmpp_2m, 2), (fg.dpmpp_3m, 2)],
    ids=repr,
)
def test_measured_order_on_a_gaussian(process, solver, order):
    counts = [33, 65, 129]
    errors = [error(process, solver, n) for n in counts]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)
    assert errors[-1] < 0.02


def test_euler_without_churn_is_ddim(process):
    levels = fg.make_levels(process, 7)
    for one, other in zip(fg.euler.run(levels), fg.ddim.run(levels), strict=True):
        assert one.at == other.at
        assert one.x == pytest.approx(other.x)


def test_heun_second_stage_on_edm():
    levels = fg.Levels(fg.EDM(), tuple(map(fg.EDM().level, (2.0, 1.5, 0.0))))
    first, second, last = fg.heun.run(levels)
    # x' = .875 x + .125 D - .1667 x_euler + .1667 D'
    assert first.keep["half"] == pytest.approx({"x": 0.875, "denoised": 0.125})
    assert second.x == pytest.approx({"half": 1.0, "x": -1 / 6, "denoised": 1 / 6})
    assert last.x == pytest.approx({"x": 0.0, "denoised": 1.0})


def test_heun_in_flow_averages_the_velocities():
    levels = fg.Levels(fg.Flow(), tuple(map(fg.Flow().level, (1.0, 0.6, 0.2))))
    first, second = list(fg.heun.run(levels))[:2]
    x, velocity, other = 1.3, -0.4, 0.9
    euler = x + (0.6 - 1.0) * velocity
    half = first.keep["half"]["x"] * x + first.keep["half"]["denoised"] * (x - 1.0 * velocity)
    result = half + second.x["x"] * euler + second.x["denoised"] * (euler - 0.6 * other)
    assert result == pytest.approx(x - 0.4 * 0.5 * (velocity + other))


def test_ddim_variances_are_the_papers():
    vp = fg.VP("linear")
    now, to = vp.level(700), vp.level(650)
    abar, abar_to = now.alpha**2, to.alpha**2
    posterior = (1 - abar_to) / (1 - abar) * (1 - abar / abar_to)
    levels = fg.Levels(vp, (now, to))
    for eta in (0.3, 1.0):
        update = next(fg.ddim(eta=eta).run(levels))
        assert update.x["noise"] ** 2 == pytest.approx(eta**2 * posterior, rel=1e-9)
    large = next(fg.ddpm(variance="large").run(levels))
    assert large.x["noise"] ** 2 == pytest.approx(1 - abar / abar_to, rel=1e-9)
    assert large.x["x"] == next(fg.ddpm.run(levels)).x["x"]


def test_ddpm_mean_is_the_posterior_mean():
    vp = fg.VP("linear")
    now, to = vp.level(321), vp.level(320)
    beta, abar, abar_to = vp.beta_table[321], now.alpha**2, to.alpha**2
    update = next(fg.ddpm.run(fg.Levels(vp, (now, to))))
    assert update.x["x"] == pytest.approx(
        math.sqrt(1 - beta) * (1 - abar_to) / (1 - abar), rel=1e-9
    )
    assert update.x["denoised"] == pytest.approx(math.sqrt(abar_to) * beta / (1 - abar), rel=1e-9)


STOCHASTIC = [
    fg.ddim(eta=0.5),
    fg.ddpm,
    fg.euler(churn=20.0),
    fg.heun(churn=20.0),
    fg.euler_ancestral,
    fg.dpmpp_2m_sde,
    fg.dpmpp_3m_sde,
]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_stochastic_solvers_give_the_exact_marginal(process, solver):
    net, prediction = gaussian(process)
    levels = fg.make_levels(process, 200 if solver.name == "euler" else 60)
    count = 6_000
    start = fg.noise(range(count), (1,)).double()
    out = exact.run_in_fp64(levels, solver, net, prediction, start)
    # 4 standard errors of a mean and of a standard deviation, and the steps' discretisation
    assert out.mean().item() == pytest.approx(MEAN, abs=4 * STD / count**0.5 + 0.01)
    assert out.std().item() == pytest.approx(STD, abs=4 * STD / (2 * count) ** 0.5 + 0.03)


def test_churn_at_the_first_step_raises_the_start():
    levels = fg.make_levels(fg.EDM(), 10)
    start, first = list(fg.heun(churn=5.0).run(levels))[:2]
    assert start.at is None
    assert first.at.sigma == pytest.approx(80 * (1 + math.sqrt(2) - 1))  # gamma is capped
    assert start.x["noise"] ** 2 + 80**2 == pytest.approx(first.at.sigma**2)


def test_last_step_lands_on_the_denoised_image(process):
    for solver in SOLVERS.values():
        *_, last = solver.run(fg.make_levels(process, 5))
        assert last.x["denoised"] == 1.0
        assert all(c == 0.0 for name, c in last.x.items() if name != "denoised")


def polynomial_run(solver, degree, growths):
    """Run `solver` where the denoised image is lambda^degree, against the exact integral."""
    process = fg.EDM()
    lambdas = [0.0]
    for h in growths:
        lambdas.append(lambdas[-1] + h)
    levels = fg.Levels(process, tuple(process.level(math.exp(-v)) for v in lambdas))
    slots = {"x": 0.3}
    updates = list(solver.run(levels))
    for update, at in zip(updates, lambdas, strict=False):
        now = {**slots, "denoised": at**degree, "noise": 0.0}
        slots = {
            name: sum(c * now[source] for source, c in sources.items())
            for name, sources in {"x": update.x, **update.keep}.items()
        }
        if update is updates[-2]:
            before = slots["x"]
    nodes = torch.linspace(lambdas[-2], lambdas[-1], 20_001, dtype=torch.float64)
    integral = torch.trapezoid((nodes - lambdas[-1]).exp() * nodes**degree, nodes).item()
    return slots["x"], math.exp(lambdas[-2] - lambdas[-1]) * before + integral


def test_dpmpp_3m_is_exact_for_a_parabola():
    """The last of unequal steps, with two evaluations behind it."""
    growths = [0.5, 0.3, 0.4, 0.7]
    for degree in (0, 1, 2):
        got, want = polynomial_run(fg.dpmpp_3m, degree, growths)
        assert got == pytest.approx(want, rel=1e-7)
    got, want = polynomial_run(fg.dpmpp_3m(published=True), 2, growths)
    assert got != pytest.approx(want, rel=1e-3)


def test_dpmpp_2m_is_the_published_update():
    vp = fg.VP("linear")
    levels = fg.Levels(vp, tuple(map(vp.level, (800.0, 600.0, 450.0))))
    h0, h = (growth(a, b) for a, b in levels.steps())
    _, update = fg.dpmpp_2m.run(levels)
    now, to = levels.points[1:]
    gain = to.alpha * (1 - math.exp(-h))
    half = 0.5 * h / h0
    assert update.x == pytest.approx(
        {"x": to.sigma / now.sigma, "denoised": gain * (1 + half), "previous": -gain * half}
    )


def test_euler_ancestral_is_ddpm_on_vp_levels():
    levels = fg.trailing.run(fg.VP("linear"), 12)
    for one, other in zip(fg.euler_ancestral.run(levels), fg.ddpm.run(levels), strict=True):
        assert one.x == pytest.approx(other.x, rel=1e-9)
    for one, other in zip(
        fg.euler_ancestral(eta=0.0).run(levels), fg.ddim.run(levels), strict=True
    ):
        assert one.x == pytest.approx(other.x, rel=1e-9)


def test_names_and_options():
    assert solver_by_name("ddim:eta=0.5").options == {"eta": 0.5}
    assert solver_by_name("ddpm:variance=large").options == {"variance": "large"}
    with pytest.raises(ValueError, match=r"solver is 'dimm'.*ddim, ddpm, .*heun"):
        solver_by_name("dimm")
    with pytest.raises(TypeError, match="ddim has no option 'eat'; its options: eta"):
        solver_by_name("ddim:eat=1")
    with pytest.raises(ValueError, match=r"eta is 2\.0"):
        list(fg.ddim(eta=2.0).run(fg.make_levels(fg.Flow(), 3)))
    with pytest.raises(ValueError, match="variance is 'big'"):
        list(fg.ddpm(variance="big").run(fg.make_levels(fg.Flow(), 3)))
    with pytest.raises(ValueError, match=r"churn is -1\.0"):
        list(fg.heun(churn=-1.0).run(fg.make_levels(fg.Flow(), 3)))
