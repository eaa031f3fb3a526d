"""Solvers: their algebra, their measured order on an exact Gaussian, their statistics."""

import math
from functools import cache
from itertools import pairwise

import exact
import pytest
import torch
from orders import EVERYWHERE, LATE, ON_THE_MIXTURE

import fastguide as fg
from fastguide.engine.plan import make_plan
from fastguide.nets import GaussianMixture
from fastguide.solvers import SOLVERS
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


@pytest.mark.parametrize(("solver", "order"), EVERYWHERE, ids=repr)
def test_measured_order_on_a_gaussian(process, solver, order):
    coarse, fine = (error(process, solver, n) for n in (33, 65))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert fine < 0.03


def evenly(process, steps, high=1.5, low=0.2):
    """Levels evenly in sigma / alpha, short of the data."""
    ratios = [high + (low - high) * i / steps for i in range(steps + 1)]
    return fg.Levels(process, tuple(map(process.at_ratio, ratios)))


@cache
def mixture(process):
    """A run on three components in the plane of a number of steps, and where its flow leads."""
    prediction = exact.prediction_for(process)
    means = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [0.0, -0.7]], dtype=torch.float64)
    net = GaussianMixture(means, [0.5, 0.4, 0.6], [0.3, 0.3, 0.4], process, prediction)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(16, 2, dtype=torch.float64, generator=generator)

    def end(solver, steps):
        return exact.run_in_fp64(evenly(process, steps, 1.2, 0.3), solver, net, prediction, start)

    return end, end(fg.rho_rk(method="rk4"), 200)


def check_on_the_mixture(process, solver, order):
    end, truth = mixture(process)
    coarse, fine = ((end(solver, n) - truth).norm().item() for n in (42, 84))  # whole groups of 3
    found = math.log2(coarse / fine)
    if solver.name == "pndm" and solver.options.get("order") != 2:
        assert found > 2.8  # even steps, for which its weights are exact: see below
    else:
        assert found == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("solver", "order"), EVERYWHERE, ids=repr)
def test_measured_order_on_a_mixture_in_the_plane(process, solver, order):
    check_on_the_mixture(process, solver, order)


@pytest.mark.parametrize(
    ("number", "solver", "order"), [(i, *one) for i, one in enumerate(ON_THE_MIXTURE)], ids=repr
)
def test_measured_order_of_other_settings(number, solver, order):
    """Each on one process in turn, as the algebra is that of all."""
    check_on_the_mixture(in_turn(number), solver, order)


def in_turn(number):
    return exact.PROCESSES[sorted(exact.PROCESSES)[number % 3]]


@pytest.mark.parametrize(("solver", "order"), LATE, ids=repr)
def test_measured_order_where_it_shows_late(solver, order):
    end, truth = mixture(exact.PROCESSES["edm"])
    coarse, fine = ((end(solver, n) - truth).norm().item() for n in (240, 480))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_sa_solver_of_orders_3_and_4_is_at_least_of_order_3(process):
    end, truth = mixture(process)
    solver = fg.sa_solver(tau=0.0, predictor_order=3, corrector_order=4)
    errors = [(end(solver, n) - truth).norm().item() for n in (30, 60, 120)]
    assert all(math.log2(coarse / fine) > 2.9 for coarse, fine in pairwise(errors))


def test_pndm_is_of_order_4_on_even_steps(process):
    net, prediction = gaussian(process)
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    errors = []
    for steps in (64, 128, 256):
        levels = evenly(process, steps)
        out = exact.run_in_fp64(levels, fg.pndm(middle="ratio"), net, prediction, start)
        std = 1.0 if isinstance(process, fg.VP) else levels.points[0].sigma
        truth = flow_of_gaussian(levels.points[0], levels.points[-1], std * start)
        errors.append((out - truth).abs().max().item())
    assert math.log2(errors[1] / errors[2]) == pytest.approx(4, abs=0.15)


def test_unipc_of_order_3_is_at_least_of_order_3(process):
    for variant in ("bh1", "bh2"):
        errors = [error(process, fg.unipc(order=3, variant=variant), n) for n in (65, 129)]
        assert math.log2(errors[0] / errors[1]) > 2.9


def test_evaluations_are_counted_as_documented(process):
    prediction = exact.prediction_for(process)
    for solver, count in (
        (fg.pndm, 20 + 9),
        (fg.plms, 21),
        (fg.heun, 39),
        (fg.unipc, 20),
        (fg.lms, 20),
        (fg.annealed_langevin(inner=3), 61),
        (fg.predictor_corrector(corrections=2), 60),
        (fg.dpm_2, 39),
        (fg.dpmpp_sde, 39),
        (fg.dpm_single, 58),
        (fg.dpmpp_single(inner="levels"), 20),
        (fg.dpm_fast, 20),
        (fg.rho_rk(method="rk4"), 77),
        (fg.sa_solver, 20),
        (fg.sa_solver(pece=True), 39),
    ):
        levels = fg.karras(sigma_max=10.0).run(process, 20)
        assert make_plan(prediction, levels, solver).evaluations == count, solver


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
    fg.predictor_corrector,
    fg.predictor_corrector(predictor="large", snr=0.1),
    fg.ddpm(variance="large"),
]


MORE = [
    fg.dpm_2_ancestral,
    fg.dpmpp_2s_ancestral,
    fg.dpmpp_sde,
    fg.dpm_fast(eta=0.5),
    fg.res_multistep_ancestral,
    fg.er_sde,
    fg.er_sde(noise_scaler="sde"),
    fg.sa_solver,
    fg.sa_solver(tau=0.6, predictor_order=3, corrector_order=3),
    fg.sa_solver(pece=True),
]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_stochastic_solvers_give_the_exact_marginal(process, solver):
    check_marginal(process, solver)


@pytest.mark.parametrize(("number", "solver"), list(enumerate(MORE)), ids=repr)
def test_other_stochastic_solvers_give_the_exact_marginal(number, solver):
    check_marginal(in_turn(number), solver)


def check_marginal(process, solver):
    net, prediction = gaussian(process)
    steps = {"euler": 200, "ddpm": 150, "predictor_corrector": 100}.get(solver.name, 60)
    levels = fg.make_levels(process, steps)
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


@pytest.mark.parametrize("solver", [fg.euler, fg.heun], ids=repr)
def test_churn_at_the_first_step_starts_from_the_first_levels_noise(process, solver):
    levels = fg.karras(sigma_max=10.0).run(process, 4)
    churned = make_plan(exact.prediction_for(process), levels, solver(churn=1.5, s_min=0.1))
    plain = make_plan(exact.prediction_for(process), levels, solver)
    assert churned.rows[1].at is None
    assert torch.equal(churned.table[0, -1:], plain.table[0, -1:])
    start = [plan.table[0][6:].reshape(len(plan.slots), -1)[0, -2] for plan in (churned, plain)]
    assert (
        start[0]
        == start[1]
        == (1.0 if process == exact.PROCESSES["vp"] else levels.points[0].sigma)
    )


def test_last_step_lands_on_the_denoised_image(process):
    multistep = {"lms", "pndm", "plms", "s_pndm"}  # as published, these extrapolate to the data
    for name, solver in SOLVERS.items():
        if name in multistep:
            continue
        *_, last = solver.run(fg.karras(sigma_max=10.0).run(process, 5))
        assert last.x["denoised"] == 1.0, name
        assert all(c == 0.0 for name, c in last.x.items() if name != "denoised"), name


def test_every_solver_starts_from_pure_noise():
    """Flow begins at alpha = 0, where sigma / alpha is infinite."""
    net, prediction = gaussian(fg.Flow())
    start = torch.linspace(-1, 1, 5, dtype=torch.float64).unsqueeze(1)
    for name, solver in SOLVERS.items():
        if name == "annealed_langevin":
            continue
        # a restart needs levels within the interval that it goes back over
        for steps in (12,) if name == "restart" else (1, 2, 3, 12):
            levels = fg.make_levels(fg.Flow(), steps)
            out = exact.run_in_fp64(levels, solver, net, prediction, start)
            assert out.isfinite().all(), (name, steps)
    with pytest.raises(ValueError, match="Langevin dynamics needs alpha above 0"):
        list(fg.annealed_langevin.run(fg.make_levels(fg.Flow(), 3)))


def rows(solver, levels):
    return [(u.at, dict(u.x)) for u in solver.run(levels)]


def same_rows(one, other):
    assert len(one) == len(other)
    for (at, x), (at_other, y) in zip(one, other, strict=True):
        assert at == at_other
        assert {k: v for k, v in x.items() if v} == pytest.approx(
            {k: v for k, v in y.items() if v}, rel=1e-9, abs=1e-12
        )


def test_first_order_members_are_ddim(process):
    levels = fg.make_levels(process, 9)
    want = rows(fg.ddim, levels)
    for solver in (fg.lms(order=1), fg.deis(order=1)):
        same_rows(rows(solver, levels), want)
    # unipc writes its x as a map of the slot "start", which holds x
    got = [
        (at, {("x" if k == "start" else k): v for k, v in x.items()})
        for at, x in rows(fg.unipc(order=1, corrector=False), levels)
    ]
    same_rows(got, want)
    # the negative branch of no guidance is the image itself
    got = []
    for at, x in rows(fg.ddim_cfgpp, levels):
        x["denoised"] += x.pop("negative", 0.0)
        got.append((at, x))
    same_rows(got, want)


def test_learned_variance_lies_between_the_two_fixed_ones():
    levels = fg.make_levels(fg.VP("linear"), 10)
    runs = [list(fg.ddpm(variance=v).run(levels)) for v in ("small", "learned", "large")]
    for small, learned, large in zip(*runs, strict=True):
        if "noise" not in small.x:
            assert "noise" not in learned.x
            continue
        for v, fixed in ((-1.0, small), (1.0, large)):
            std = learned.x["noise"] * math.exp(learned.spread * v)
            assert std == pytest.approx(fixed.x["noise"], rel=1e-12)
        # eq. 15 half-way: the mean of the logarithms of the variances
        assert 2 * math.log(learned.x["noise"]) == pytest.approx(
            math.log(small.x["noise"] ** 2) / 2 + math.log(large.x["noise"] ** 2) / 2
        )


def test_langevin_reaches_the_stationary_variance():
    """On N(m, V) the discrete chain of step e has the variance V / (1 - e / 2 V)."""
    process = fg.EDM()
    net, prediction = gaussian(process)
    sigma, rate, count = 0.8, 0.3, 20_000
    variance = STD**2 + sigma**2
    levels = fg.Levels(process, (process.level(sigma), process.level(0.0)))
    solver = fg.annealed_langevin(rate=rate, inner=40, denoise=False)
    start = fg.noise(range(count), (1,)).double()
    out = exact.run_in_fp64(levels, solver, net, prediction, start)
    want = variance / (1 - rate / (2 * variance))
    # 4 standard errors of a variance and of a mean
    assert out.var().item() == pytest.approx(want, rel=4 * math.sqrt(2 / count))
    assert out.mean().item() == pytest.approx(MEAN, abs=4 * math.sqrt(want / count))


def test_annealed_langevin_is_the_published_rule():
    """x += s score + sqrt(2 s) n with s = rate (sigma / sigma_last)^2, then one denoising step."""
    process = fg.EDM()
    sigmas = (1.0, 0.5, 0.2)
    levels = fg.Levels.from_sigmas(process, sigmas)
    updates = list(fg.annealed_langevin(rate=0.01, inner=2).run(levels))
    assert [u.at.sigma for u in updates] == [1.0, 1.0, 0.5, 0.5, 0.2, 0.2, 0.2]
    for update in updates[:-1]:
        sigma = update.at.sigma
        s = 0.01 * (sigma / 0.2) ** 2
        assert update.x == pytest.approx(
            {"x": 1 - s / sigma**2, "denoised": s / sigma**2, "noise": math.sqrt(2 * s)}
        )
    assert updates[-1].x == {"denoised": 1.0}


def test_consistency_steps_are_algorithm_1():
    process = fg.EDM(sigma_min=0.02, sigma_max=20.0)
    prediction = fg.Prediction("consistency", sigma_min=0.02)
    a, b = prediction.denoised(process.level(0.02))
    assert (a, b) == (1.0, 0.0)  # the identity at sigma_min
    levels = fg.Levels.from_sigmas(process, (20.0, 2.0, 0.5))
    updates = list(fg.consistency.run(levels))
    assert updates[0].x == pytest.approx({"denoised": 1.0, "noise": math.sqrt(2.0**2 - 0.02**2)})
    assert updates[-1].x == {"denoised": 1.0}


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        (fg.lms(order=5), "order is 5"),
        (fg.deis(order=0), "order is 0"),
        (fg.unipc(order=4), "order is 4"),
        (fg.unipc(variant="bh3"), "variant is 'bh3'"),
        (fg.pndm(middle="x"), "middle is 'x'"),
        (fg.heun(over="t"), "over is 't'"),
        (fg.annealed_langevin(rate=0.0), "rate is 0.0"),
        (fg.annealed_langevin(inner=0), "inner 0"),
        (fg.predictor_corrector(snr=-1.0), "snr is -1.0"),
        (fg.consistency(sigma_min=-1.0), "sigma_min is -1.0"),
        (fg.euler_ancestral(eta=-1.0), "eta is -1.0"),
        (fg.heun(alpha=0.0), "alpha is 0.0"),
        (fg.dpmpp_sde(r=1.0), "r is 1.0"),
        (fg.dpm_single(order=4), "order is 4"),
        (fg.dpmpp_single(solver_type="taylor"), "solver_type is 'taylor'"),
        (fg.dpmpp_single(inner="grid"), "inner is 'grid'"),
        (fg.rho_rk(method="rk5"), "method is 'rk5'"),
        (fg.ipndm(order=5), "order is 5"),
        (fg.s_pndm(order=1), "order is 1"),
        (fg.deis(over="x"), "over is 'x'"),
        (fg.sa_solver(predictor_order=0), "predictor_order is 0"),
        (fg.sa_solver(corrector_order=5), "corrector_order is 5"),
        (fg.sa_solver(tau=-1.0), "tau is -1.0"),
        (fg.er_sde(order=4), "order is 4"),
        (fg.er_sde(noise_scaler="x"), "noise_scaler is 'x'"),
        (fg.unipc(over="x"), "over is 'x'"),
        (fg.unipc(uncorrected=-1), "uncorrected is -1"),
    ],
    ids=repr,
)
def test_wrong_options_are_named(solver, message):
    with pytest.raises(ValueError, match=message):
        list(solver.run(fg.karras(sigma_max=10.0).run(fg.EDM(), 5)))


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
    assert fg.solver("ddim:eta=0.5").solver.options == {"eta": 0.5}
    assert fg.solver("ddpm:variance=large").solver.options == {"variance": "large"}
    with pytest.raises(ValueError, match=r"solver is 'dimm'.*ddim, .*ddpm, .*heun"):
        fg.solver("dimm")
    with pytest.raises(TypeError, match="ddim has no option 'eat'; its options: eta, rederive"):
        fg.solver("ddim:eat=1")
    with pytest.raises(ValueError, match=r"eta is 2\.0"):
        list(fg.ddim(eta=2.0).run(fg.make_levels(fg.Flow(), 3)))
    with pytest.raises(ValueError, match="variance is 'big'"):
        list(fg.ddpm(variance="big").run(fg.make_levels(fg.Flow(), 3)))
    with pytest.raises(ValueError, match=r"churn is -1\.0"):
        list(fg.heun(churn=-1.0).run(fg.make_levels(fg.Flow(), 3)))
