"""Processes and predictions against their definitions."""

import math

import pytest
import torch

import fastguide as fg
from fastguide.diffuse import alpha_sigma, net_input, prediction_of

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
