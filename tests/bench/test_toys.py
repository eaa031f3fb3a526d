"""The exact answers of the toys, against quadrature and against each other."""

import math
import sys
from pathlib import Path

import pytest
import torch

import fastguide as fg
from fastguide.nets import GaussianMixture

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/quality"))
import fractal
import golden
import toys

GAUSSIAN = {"cond": (0.5, 0.5), "ref": (0.0, 1.0)}


def level(ratio):
    alpha, sigma = toys.of_ratio(ratio)
    return alpha, sigma, alpha.item(), sigma.item()


def normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))


def log_expectation(x, alpha, sigma, w, cond, ref):
    """`log E_t(x)`, as the integral over x_0 that defines it, by the trapezoidal rule."""
    clean = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    posterior = normal(clean, *cond) + normal(x, alpha * clean, sigma)
    log_ratio = w * (normal(clean, *cond) - normal(clean, *ref))
    top, bottom = (torch.trapezoid(one.exp(), clean) for one in (posterior + log_ratio, posterior))
    return (top / bottom).log()


@pytest.mark.parametrize("ratio", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("w", [0.5, 1.0, 3.0])
def test_the_closed_form_is_the_gradient_of_the_integral(ratio, w):
    _, _, alpha, sigma = level(ratio)
    x, h = torch.tensor([-1.3, 0.2, 2.1], dtype=torch.float64), 1e-3
    expected = [
        (
            log_expectation(one + h, alpha, sigma, w, **GAUSSIAN)
            - log_expectation(one - h, alpha, sigma, w, **GAUSSIAN)
        )
        / (2 * h)
        for one in x
    ]
    found = golden.gaussian_gradient(x, alpha, sigma, w=w, **GAUSSIAN)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 5.0])
def test_the_tabulated_denoiser_is_the_closed_form(ratio):
    """eps* two ways: as a tilted posterior, and as a network whose data are q."""
    alpha, sigma, a, s = level(ratio)
    case, x = toys.CASES[0], torch.linspace(-2, 2, 9, dtype=torch.float64).unsqueeze(1)
    found = toys.predictions(case, case.target(1.5), 1.5, x, alpha, sigma)
    gradient = golden.gaussian_gradient(x, a, s, w=1.5, **GAUSSIAN)
    torch.testing.assert_close(found["golden"], found["none"] - s * gradient, rtol=1e-7, atol=1e-7)


def test_a_target_that_is_no_density_is_refused():
    wide = {"cond": (0.0, 2.0), "ref": (0.0, 1.0)}
    with pytest.raises(ValueError, match="w is 4"):
        golden.gaussian_gradient(torch.zeros(1), 0.1, 1.0, w=4.0, **wide)


@pytest.mark.parametrize("case", toys.CASES, ids=lambda case: case.name)
def test_weight_0_gives_the_network_itself(case):
    """The quadrature of p(x_0 | y) against the exact denoiser of its mixture."""
    generator = torch.Generator().manual_seed(0)
    for ratio in (0.05, 0.5, 3.0):
        alpha, sigma, _, _ = level(ratio)
        noise = torch.randn(20, case.dimensions, generator=generator, dtype=torch.float64)
        x = alpha * toys.draw(case.target(0.0), 20, 0) + sigma * noise
        found = toys.predictions(case, case.target(0.0), 0.0, x, alpha, sigma)
        for name, eps in found.items():
            torch.testing.assert_close(eps, found["none"], rtol=1e-6, atol=1e-6, msg=name)


def test_the_grid_is_fine_and_wide_enough():
    for case in toys.CASES:
        halved = toys.Case(**{**vars(case), "axis": case.axis[::2]})
        alpha, sigma, _, _ = level(0.03)
        x = alpha * toys.draw(case.target(1.0), 20, 0)
        fine, coarse = (one.target(1.0).denoised(x, alpha, sigma) for one in (case, halved))
        torch.testing.assert_close(fine, coarse, rtol=1e-5, atol=1e-5)
        edge = case.target(4.0).probabilities()
        assert edge[0].max() + edge[-1].max() < 1e-6 * edge.max()


def test_log_density_is_the_mixtures():
    means = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    net = GaussianMixture(means, [0.5, 2.0], [0.3, 0.9], fg.EDM(), fg.Prediction("edm"), [0, 1])
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    parts = [normal(x, m, s).sum(-1).exp() for m, s in zip(means, [0.5, 2.0], strict=True)]
    torch.testing.assert_close(golden.log_density(net, x), (parts[0] / 4 + 3 * parts[1] / 4).log())
    torch.testing.assert_close(golden.log_density(net, x, 1), parts[1].log())


def test_the_quoted_errors():
    """The README's and the notes' numbers: rms in eps, evenly over [-3, 3]."""
    found = toys.quoted()
    assert found["CFG"] == pytest.approx(0.628, abs=6e-4)
    assert found["REG"] == pytest.approx(0.042, abs=3e-4)
    x = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    alpha = sigma = math.sqrt(0.5)
    of_cond = sigma * (x - alpha * 0.5) / (alpha**2 * 0.25 + sigma**2)
    delta = of_cond - sigma * x  # eps_c - eps_ref; the reference's x_t is N(0, 1)
    exact = -sigma * golden.gaussian_gradient(x, alpha, sigma, w=1.0, **GAUSSIAN)
    c = 1 - sigma * sigma / (alpha**2 * 0.25 + sigma**2)  # 1 - sigma d eps / dx
    assert (delta - exact).square().mean().sqrt().item() == pytest.approx(found["CFG"], rel=1e-6)
    assert (c * delta - exact).square().mean().sqrt().item() == pytest.approx(
        found["REG"], rel=1e-5
    )


@pytest.mark.parametrize("case", [toys.CASES[1], toys.CASES[2]], ids=["1-D", "2-D"])
@pytest.mark.parametrize("mode", ["vjp", "chain"])
def test_the_library_is_the_formula(case, mode):
    """One step of the library to the data is the denoised image, against `golden.reg`."""
    shape = (case.dimensions,)
    model = fg.Model(
        case.net, toys.PROCESS, toys.PREDICTION, shape, case.null, class_names=("y", "other")
    )
    levels = fg.karras(sigma_max=1.5, sigma_min=1.0).run(toys.PROCESS, 1)
    noise, labels = torch.randn(20, *shape), torch.zeros(20, dtype=torch.int64)
    guidance = fg.REG(fg.CFG(3.0), mode=mode)
    found = fg.sample(model, labels, guidance, levels=levels, noise=noise, seeds=range(20))
    sigma = torch.full((1, 1), levels.points[0].sigma, dtype=torch.float64)
    x, ones = sigma * noise.double(), torch.ones(1, 1, dtype=torch.float64)
    both = golden.reg(case.denoiser(0), case.denoiser(case.null), 2.0, x, ones, sigma)
    expected = both[mode == "chain"]
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    if case.dimensions > 1:
        assert (both[0] - both[1]).abs().max() > 0.01


def test_the_fractals_classes_and_generations_weigh_the_same():
    tree = fractal.grow()
    branches = 2**fractal.DEPTH - 1
    assert tree.means.shape == (2 * branches * fractal.ON_A_BRANCH, 2)
    own = tree.labels == 0
    assert tree.weights[own].sum().item() == pytest.approx(0.5)
    for generation in range(fractal.DEPTH):
        first, last = 2**generation - 1, 2 ** (generation + 1) - 1
        there = (tree.branches >= first) & (tree.branches < last)
        assert tree.weights[there].sum().item() == pytest.approx(0.5 / fractal.DEPTH)
    assert (tree.means[own].mean(0) > 0.3).all()
    assert (tree.means[~own].mean(0) < -0.3).all()


def test_the_fractals_judge_knows_data_outliers_and_lost_branches():
    tree, generator = fractal.grow(), torch.Generator().manual_seed(0)
    own = tree.draw(4000, 0, generator)
    floor = torch.quantile(golden.log_density(tree.net(), own, 0), 0.01).item()
    of_data = fractal.judge(tree, own, floor)
    assert of_data["outliers"] == pytest.approx(0.01, abs=1e-3)
    assert of_data["misplaced"] < 0.1
    assert fractal.judge(tree, own + 0.2, floor)["outliers"] > 0.3
    trunk = tree.means[(tree.branches == 0).nonzero().squeeze(1)]
    found = fractal.judge(tree, trunk.repeat(10, 1), floor)
    assert found["misplaced"] == pytest.approx(1 - 1 / fractal.DEPTH, abs=1e-6)
    assert found["outliers"] == 0
