"""Processes and predictions against their definitions."""

import json
import math
from dataclasses import asdict
from itertools import pairwise

import exact
import pytest
import torch

import fastguide as fg
from fastguide.nets import GaussianMixture
from fastguide.nets.diffuse import alpha_sigma, from_ratio, net_input, prediction_of

LEVELS = {
    "vp": fg.VP("linear").level(417.25),
    "edm": fg.EDM().level(3.7),
    "flow": fg.Flow().level(0.62),
}


def test_ddpm_betas_give_the_published_alpha_bars():
    vp = fg.VP("linear")
    product = 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
    last = vp.level(999)
    assert last.alpha**2 == pytest.approx(product, rel=1e-12)
    assert last.alpha**2 + last.sigma**2 == pytest.approx(1, abs=1e-15)


def test_stable_diffusion_sigma_range():
    sd = fg.VP("scaled_linear", 0.00085, 0.012)
    # the sigma_min and sigma_max that k-diffusion prints for Stable Diffusion 1.x
    assert sd.level(0).ratio == pytest.approx(0.0292, abs=1e-4)
    assert sd.level(999).ratio == pytest.approx(14.6146, abs=1e-4)


def test_cosine_betas_follow_the_squared_cosine_until_they_are_clipped():
    vp = fg.VP("cosine")

    def f(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    assert vp.level(499).alpha ** 2 == pytest.approx(f(0.5) / f(0), rel=1e-9)
    assert max(vp.beta_table) == 0.999


PURE = fg.VP("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True)


def test_zero_terminal_snr_moves_and_scales_the_root_of_abar():
    plain = fg.VP("scaled_linear", 0.00085, 0.012)
    roots = [plain.level(t).alpha for t in range(1000)]
    for t in (0, 1, 100, 500, 900, 998):
        moved = roots[0] / (roots[0] - roots[-1]) * (roots[t] - roots[-1])
        assert PURE.level(t).alpha == pytest.approx(moved, rel=1e-9)
    assert PURE.level(999) == fg.Level(999, 0.0, 1.0)
    assert PURE.level(999).ratio == math.inf
    assert PURE.beta_table[-1] == 1.0
    assert PURE.beta_table[0] == plain.beta_table[0]
    product = 1.0
    for t, beta in enumerate(PURE.beta_table[:-1]):
        product *= 1 - beta
        assert PURE.level(t).alpha ** 2 == pytest.approx(product, rel=1e-9)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
def test_between_the_last_two_timesteps_of_zero_snr_alpha_is_linear(betas):
    pure = fg.VP(betas, timesteps=50, zero_terminal_snr=True)
    alpha = pure.level(48).alpha
    shares = [i / 8 for i in range(9)]
    levels = [pure.level(48 + share) for share in shares]
    for share, level in zip(shares, levels, strict=True):
        assert level.alpha == pytest.approx((1 - share) * alpha, rel=1e-12)
        assert math.hypot(level.alpha, level.sigma) == pytest.approx(1, abs=1e-15)
        assert pure.at_ratio(level.ratio).t == pytest.approx(level.t, abs=1e-9)
        assert pure.at_ratio(level.ratio).alpha == pytest.approx(level.alpha, rel=1e-12)
    for now, to in pairwise([pure.level(47.9), *levels]):
        assert now.ratio < to.ratio
    assert pure.level(48 - 1e-9).alpha == pytest.approx(alpha, rel=1e-6)  # no jump
    assert pure.at_ratio(math.inf) == fg.Level(49.0, 0.0, 1.0)
    assert pure.at_ratio(1e300) == fg.Level(49.0, pytest.approx(1e-300), 1.0)
    assert fg.VP("linear").at_ratio(math.inf).t == 999.0  # clipped, as ever


def test_tensor_levels_of_zero_snr_equal_the_floats():
    times = [0.0, 3.7, 500.0, 997.25, 998.0, 998.5, 998.999, 999.0]
    alpha, sigma = alpha_sigma(PURE, torch.tensor(times, dtype=torch.float64))
    for i, level in enumerate(map(PURE.level, times)):
        assert alpha[i].item() == pytest.approx(level.alpha, rel=1e-9)
        assert sigma[i].item() == pytest.approx(level.sigma, rel=1e-9)
    assert (alpha[-1].item(), sigma[-1].item()) == (0.0, 1.0)
    for process in (PURE, fg.Flow()):
        ratio = torch.tensor([0.0, 1.0, math.inf], dtype=torch.float64)
        alpha, sigma = from_ratio(process, ratio)
        assert (alpha[0].item(), sigma[0].item()) == (1.0, 0.0)
        assert (alpha[2].item(), sigma[2].item()) == (0.0, 1.0)


def gaussian(mean, std):
    means = torch.full((1, 1), mean, dtype=torch.float64)
    return GaussianMixture(means, [std], [1.0], PURE, fg.Prediction("v"))


@pytest.mark.parametrize(
    ("solver", "order"), [(fg.ddim, 1), (fg.euler, 1), (fg.heun, 2), (fg.dpmpp_2m, 2)], ids=repr
)
def test_solvers_keep_their_order_from_pure_noise(solver, order):
    mean, std = 0.7, 0.6
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    errors = []
    for steps in (50, 100):
        levels = fg.Levels.from_times(PURE, [999 - 899 * i / steps for i in range(steps + 1)])
        levels = fg.Levels(PURE, levels.points[:-1])
        assert levels.points[0] == fg.Level(999, 0.0, 1.0)
        out = exact.run_in_fp64(levels, solver, gaussian(mean, std), fg.Prediction("v"), start)
        last = levels.points[-1]
        expected = last.alpha * mean + math.hypot(last.alpha * std, last.sigma) * start
        errors.append((out - expected).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > order - 0.1
    assert errors[1] < 0.01


def test_ddpm_from_pure_noise_gives_the_marginal():
    mean, std, count = 0.7, 0.6, 6000
    start = fg.noise(range(count), (1,)).double()
    out = exact.run_in_fp64(
        fg.trailing.run(PURE, 60), fg.ddpm, gaussian(mean, std), fg.Prediction("v"), start
    )
    # 4 standard errors of a mean and of a standard deviation, and the steps' discretisation
    assert out.mean().item() == pytest.approx(mean, abs=4 * std / count**0.5 + 0.01)
    assert out.std().item() == pytest.approx(std, abs=4 * std / (2 * count) ** 0.5 + 0.03)


def test_eps_is_refused_at_zero_snr():
    with pytest.raises(ValueError, match=r"prediction is 'eps'.*alpha is 0"):
        fg.Prediction("eps").denoised(PURE.level(999))


def test_spacings_in_sigma_start_just_below_pure_noise():
    for spacing in (fg.karras, fg.exponential):
        levels = spacing.run(PURE, 10)
        assert levels.points[0].ratio == pytest.approx(PURE.level(998).ratio)
        assert levels.points[0].alpha > 0.0
    levels = fg.Levels.from_sigmas(PURE, [math.inf, 10.0, 1.0])
    assert levels.points[0] == fg.Level(999, 0.0, 1.0)


def test_given_betas_are_those_of_the_process():
    linear = fg.VP("linear", timesteps=20)
    given = fg.VP.from_betas(list(linear.beta_table))
    assert given.timesteps == 20
    assert given.betas == linear.beta_table
    for t in (0, 3.5, 19):
        assert given.level(t) == linear.level(t)
    ends = fg.VP.from_betas([0.1, 0.5, 1.0])
    assert ends.level(2) == fg.Level(2, 0.0, 1.0)
    assert ends.level(1).alpha ** 2 == pytest.approx(0.9 * 0.5)
    pure = fg.VP("linear", timesteps=20, zero_terminal_snr=True)
    assert fg.VP.from_betas(linear.beta_table, zero_terminal_snr=True).log_ratios == pure.log_ratios


@pytest.mark.parametrize(
    "vp", [fg.VP("cosine"), PURE, fg.VP.from_betas([0.1, 0.2, 0.7], zero_terminal_snr=True)]
)
def test_vp_survives_json(vp):
    back = fg.VP(**json.loads(json.dumps(asdict(vp))))
    assert back == vp
    assert hash(back) == hash(vp)
    assert back.log_ratios == vp.log_ratios


def test_descriptions_without_the_newer_fields_still_load():
    old = {"betas": "linear", "beta_start": 1e-4, "beta_end": 0.02, "timesteps": 1000}
    assert fg.VP(**old) == fg.VP("linear")


def test_level_and_at_ratio_are_inverse(process):
    for share in (0.9, 0.5, 0.123):
        t = process.t_min + share * (process.t_max - process.t_min)
        level = process.level(t)
        back = process.at_ratio(level.ratio)
        assert back.t == pytest.approx(t, rel=1e-9)
        assert back.alpha == pytest.approx(level.alpha, rel=1e-12)


def test_the_clean_end_is_exact(process):
    clean = process.at_ratio(0.0)
    assert (clean.alpha, clean.sigma) == (1.0, 0.0)
    assert fg.Flow().at_ratio(math.inf) == fg.Level(1.0, 0.0, 1.0)
    assert math.isinf(fg.Flow().level(1.0).ratio)


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("kind", sorted(LEVELS))
def test_denoised_map_inverts_the_training_target(name, kind):
    prediction, level = fg.Prediction(name), LEVELS[kind]
    clean, noise = torch.randn(2, 50, dtype=torch.float64)
    x = level.alpha * clean + level.sigma * noise
    alpha, sigma = (torch.tensor(v, dtype=torch.float64) for v in (level.alpha, level.sigma))
    target = prediction_of(prediction, clean, x, alpha, sigma)
    if name in ("eps", "flow"):
        expected = noise if name == "eps" else noise - clean
        torch.testing.assert_close(target, expected, rtol=1e-12, atol=1e-12)
    a, b = prediction.denoised(level)
    torch.testing.assert_close(a * x + b * target, clean, rtol=1e-10, atol=1e-10)


def test_edm_preconditioning_is_the_published_one():
    prediction, sigma, data = fg.Prediction("edm", 0.5), 3.0, 0.5
    level = fg.EDM().level(sigma)
    a, b = prediction.denoised(level)
    assert a == pytest.approx(data**2 / (sigma**2 + data**2))
    assert b == pytest.approx(sigma * data / math.sqrt(sigma**2 + data**2))
    assert prediction.input_scale(level) == pytest.approx(1 / math.sqrt(sigma**2 + data**2))
    assert prediction.net_time(level) == pytest.approx(math.log(sigma) / 4)


def test_tensor_levels_equal_the_floats(process):
    times = [process.t_min + s * (process.t_max - process.t_min) for s in (0.03, 0.4, 0.77)]
    alpha, sigma = alpha_sigma(process, torch.tensor(times, dtype=torch.float64))
    for i, level in enumerate(map(process.level, times)):
        assert alpha[i].item() == pytest.approx(level.alpha, rel=1e-12)
        assert sigma[i].item() == pytest.approx(level.sigma, rel=1e-12)
        prediction = fg.Prediction("edm")
        x, t = net_input(prediction, torch.ones(1), torch.ones(1), alpha[i], sigma[i])
        assert x.item() == pytest.approx(prediction.input_scale(level))
        assert t.item() == pytest.approx(prediction.net_time(level))


@pytest.mark.parametrize("name", ["eps", "edm"])
def test_a_prediction_that_says_nothing_at_alpha_zero_is_an_error(name):
    with pytest.raises(ValueError, match=f"prediction is '{name}'.*alpha is 0"):
        fg.Prediction(name).denoised(fg.Flow().level(1.0))
    assert fg.Prediction("flow").denoised(fg.Flow().level(1.0)) == (1.0, -1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fg.VP("quadratic"), "betas is 'quadratic'"),
        (lambda: fg.VP(3), "betas is 3, but"),
        (lambda: fg.VP(("a", "b")), r"betas is \('a', 'b'\), but"),
        (lambda: fg.VP((0.1, 0.2)), "timesteps is 1000, but betas has 2 numbers"),
        (lambda: fg.VP.from_betas([0.1, 0.0]), r"betas\[1\] is 0.0, but .* \(0, 1\]"),
        (lambda: fg.VP.from_betas([1.0, 0.1]), r"betas\[0\] is 1.0, but .* \(0, 1\)"),
        (lambda: fg.VP.from_betas([0.1]), "timesteps is 1"),
        (lambda: fg.VP(timesteps=1), "timesteps is 1"),
        (lambda: fg.VP(beta_start=0.5, beta_end=0.1), "beta_start, beta_end are 0.5, 0.1"),
        (lambda: fg.EDM(sigma_min=3, sigma_max=1), "sigma_min, sigma_max are 3, 1"),
        (lambda: fg.Flow().level(1.5), "t is 1.5"),
        (lambda: fg.VP().level(1000), "t is 1000"),
        (lambda: fg.EDM().level(math.inf), "t is inf"),
        (lambda: fg.Prediction("epsilon"), "prediction is 'epsilon'"),
        (lambda: fg.Prediction("edm", 0.0), "sigma_data is 0.0"),
    ],
)
def test_errors_name_the_argument_and_its_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sub", [False, True])
def test_continuous_vp_is_score_sdes(sub):
    process = fg.ContinuousVP(sub=sub)
    for s in (1e-3, 0.1, 0.5, 1.0):
        at = process.level(999.0 * s)
        integral = 0.1 * s + 0.5 * s * s * (20.0 - 0.1)  # of beta from 0 to s
        variance = 1.0 - math.exp(-integral)
        assert at.alpha == pytest.approx(math.exp(-0.5 * integral))
        assert at.sigma == pytest.approx(variance if sub else math.sqrt(variance))
        assert process.at_ratio(at.ratio).t == pytest.approx(at.t)
    assert process.at_ratio(0.0).sigma == 0.0
    assert process.at_ratio(math.inf).t == 999.0
    assert len(fg.make_levels(process, 10).points) == 11
    with pytest.raises(ValueError, match="t is 1000"):
        process.level(1000.0)
    with pytest.raises(ValueError, match="s_min is 0"):
        fg.ContinuousVP(s_min=0.0)


@pytest.mark.parametrize("sub", [False, True])
def test_a_gaussian_on_continuous_vp(sub):
    """Samples have its moments, and its likelihood is the closed form."""
    process = fg.ContinuousVP(sub=sub)
    net = GaussianMixture(torch.full((1, 2), 0.3), [0.5], [1.0], process, fg.Prediction("eps"))
    model = fg.Model(net, process, fg.Prediction("eps"), (2,))
    images = fg.sample(model, solver="unipc", spacing="karras", steps=30, seeds=range(500))
    assert images.mean().item() == pytest.approx(0.3, abs=0.07)
    assert images.std().item() == pytest.approx(0.5, abs=0.05)
    some = images[:4]
    log_p = torch.distributions.Normal(0.3, 0.5).log_prob(some.double()).sum(1)
    bits = fg.log_likelihood(model, some, trace="exact")
    assert (bits + log_p / 2 / math.log(2.0)).abs().max() < 0.01
