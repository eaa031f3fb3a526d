"""Runs that choose their steps, and the likelihood that they give."""

import math

import exact
import k_diffusion_sampling
import pytest
import torch

import fastguide as fg
from fastguide.nets import GaussianMixture

MEAN, STD = 0.1, 0.5


def gaussian(process, size=3):
    prediction = exact.prediction_for(process)
    mean = torch.full((1, size), MEAN, dtype=torch.float64)
    net = GaussianMixture(mean, [STD], [1.0], process, prediction)
    return fg.Model(net, process, prediction, (size,))


def spread(level):
    return math.hypot(level.alpha * STD, level.sigma)


def ends(process):
    return fg.Levels(process, (process.at_ratio(15.0), process.at_ratio(0.05)))


@pytest.mark.parametrize("method", ["rk45", "dpm_adaptive"])
def test_the_error_falls_with_the_tolerance(process, method):
    model, levels = gaussian(process), ends(process)
    noise = torch.linspace(-2, 2, 12).reshape(4, 3)
    first, last = levels.points
    x = noise * (1.0 if isinstance(process, fg.VP) else first.sigma)
    want = last.alpha * MEAN + spread(last) / spread(first) * (x - first.alpha * MEAN)
    errors, counts = [], []
    for tolerance in (1e-2, 1e-4):
        run = {"method": method, "rtol": tolerance, "atol": tolerance, "levels": levels}
        found = fg.ode(model, seeds=range(4), noise=noise, **run)
        errors.append((found.images - want).abs().max().item())
        counts.append(found.evaluations)
        assert found.evaluations >= (6 if method == "rk45" else 3) * found.accepted
    assert errors[1] < 2e-4
    assert errors[1] < 0.3 * errors[0]
    assert counts[1] > counts[0]


def test_from_pure_noise_to_the_data():
    model = exact.two_classes(exact.PROCESSES["flow"])
    labels, seeds = [0, 1], [4, 5]
    want = fg.sample(model, labels, fg.CFG(1.5), "unipc", 200, seeds)
    for method in ("rk45", "dpm_adaptive"):
        run = {"method": method, "rtol": 1e-4, "atol": 1e-4}
        found = fg.ode(model, labels, fg.CFG(1.5), seeds, **run)
        torch.testing.assert_close(found.images, want, rtol=0, atol=5e-3)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_dpm_adaptive_is_k_diffusions(order, eta):
    theirs = k_diffusion_sampling.load()
    process = fg.EDM(0.05, 15.0)
    net = GaussianMixture(
        torch.tensor([[0.8, 0.1], [-0.5, 0.6]], dtype=torch.float64),
        [0.5, 0.4],
        [0.4, 0.6],
        process,
        fg.Prediction("x0"),
    )
    model = fg.Model(net, process, fg.Prediction("x0"), (2,))
    start = torch.randn(1, 2)
    options = {"order": order, "eta": eta, "rtol": 0.01, "atol": 0.002}
    # from where errors stand out of fp32's rounding, which else would choose other steps
    levels = fg.Levels(process, (process.level(2.0), process.level(0.05)))
    seeds = torch.tensor([7])
    run = {"levels": levels, "method": "dpm_adaptive", "noise": start, **options}
    found = fg.ode(model, seeds=seeds, **run)
    draws = iter(range(1, 1000))
    want, info = theirs.sample_dpm_adaptive(
        net,
        2.0 * start.double(),
        0.05,
        2.0,
        disable=True,
        return_info=True,
        noise_sampler=lambda *_: fg.noise(seeds, (2,), next(draws)).double(),
        **options,
    )
    assert (found.accepted, found.rejected) == (info["n_accept"], info["n_reject"])
    assert found.accepted > 5
    torch.testing.assert_close(found.images.double(), want, rtol=0, atol=1e-5)


def test_guidance_with_an_interval_is_that_of_each_level():
    """Outside its interval guidance is off, as if it were not there."""
    model = exact.two_classes(exact.PROCESSES["edm"])
    run = {"cond": [0, 1], "seeds": [1, 2], "rtol": 1e-5, "atol": 1e-5}
    plain = fg.ode(model, **run).images
    off = fg.ode(model, guidance=fg.CFG(3.0, fg.interval(50.0, 60.0)), **run).images
    on = fg.ode(model, guidance=fg.CFG(3.0, fg.interval(0.1, 10.0)), **run).images
    torch.testing.assert_close(off, plain, rtol=0, atol=1e-3)
    assert (on - plain).abs().max() > 0.05


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (fg.CFG(3.0, fg.interval(0.1, 0.6, over="step")), "chooses its own levels"),
        (fg.CFG(3.0, fg.linear(0.0, 1.0)), "chooses its own levels"),
        (fg.CFG([1.0, 2.0, 3.0]), "chooses its own levels"),
        (fg.APG(fg.CFG(3.0), momentum=-0.5), "remembers earlier evaluations"),
        (fg.Adaptive(fg.CFG(3.0), 0.2), "remembers earlier evaluations"),
    ],
    ids=repr,
)
def test_what_depends_on_the_run_is_refused(guidance, message):
    model = exact.two_classes(exact.PROCESSES["edm"])
    with pytest.raises(ValueError, match=message):
        fg.ode(model, [0], guidance, [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rk4"}, "method is 'rk4'"),
        ({"rtol": 0.0}, "rtol is 0"),
        ({"method": "dpm_adaptive", "order": 4}, "order is 4"),
        ({"noise": torch.zeros(1, 2)}, "noise.shape is"),
        ({"eta": 0.5}, "only method 'dpm_adaptive' has them"),
        ({"guidance": fg.CFG(torch.tensor([1.0, 2.0, 3.0]))}, "holds values for 3 samples"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    model = exact.two_classes(exact.PROCESSES["edm"])
    with pytest.raises(ValueError, match=message):
        fg.ode(model, [0], seeds=[1], **options)


def bits(log_p, size):
    return -log_p / size / math.log(2.0)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_bits_per_dimension_of_a_gaussian(process, trace):
    if isinstance(process, fg.EDM):
        process = fg.EDM(0.002, 80.0)
    model = gaussian(process)
    images = MEAN + STD * torch.randn(6, 3)
    want = torch.distributions.Normal(MEAN, STD).log_prob(images.double()).sum(1)
    found = fg.log_likelihood(model, images, trace=trace)
    assert (found - bits(want, 3)).abs().max() < 0.01
    offset = fg.log_likelihood(model, images, trace=trace, bins=256) - found
    torch.testing.assert_close(offset, torch.full_like(offset, 7.0))


def test_it_is_k_diffusions():
    """Of a Gaussian, whose Jacobian every sign finds, so that theirs are of no account."""
    theirs = k_diffusion_sampling.load()
    process = fg.EDM(0.01, 40.0)
    model, images = gaussian(process), torch.randn(5, 3)
    prediction = fg.Prediction("edm")

    def denoiser(x, sigma):
        level = process.level(float(sigma[0]))
        a, b = prediction.denoised(level)
        t = torch.full((5,), prediction.net_time(level))
        return a * x + b * model.net(prediction.input_scale(level) * x, t)

    want, _ = theirs.log_likelihood(denoiser, images, 0.01, 40.0, atol=1e-5, rtol=1e-5)
    found = fg.log_likelihood(model, images, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, bits(want.double(), 3), rtol=0, atol=1e-4)


def test_bits_per_dimension_of_a_mixture():
    process = exact.PROCESSES["flow"]
    prediction = exact.prediction_for(process)
    means = torch.tensor([[0.8, 0.1], [-0.5, 0.6], [0.0, -0.7]], dtype=torch.float64)
    stds, weights = torch.tensor([0.5, 0.4, 0.6]), torch.tensor([0.3, 0.3, 0.4])
    net = GaussianMixture(means, stds.tolist(), weights.tolist(), process, prediction)
    model = fg.Model(net, process, prediction, (2,))
    images = torch.randn(8, 2)
    each = torch.distributions.Normal(means, stds.double().unsqueeze(1))
    log_p = each.log_prob(images.double().unsqueeze(1)).sum(2) + weights.double().log()
    want = bits(log_p.logsumexp(1), 2)
    found = fg.log_likelihood(model, images, trace="exact")
    assert (found - want).abs().max() < 0.002
    # unbiased: the mean over many probes is the trace, the error of one is not small
    probed = fg.log_likelihood(model, images[:2].repeat(100, 1), probes=2, rtol=1e-3, atol=1e-3)
    assert (probed.view(100, 2).mean(0) - want[:2]).abs().max() < 0.05
    assert probed.view(100, 2).std(0).min() > 1e-3
    assert fg.log_likelihood(model, images[:1], seed=3) == fg.log_likelihood(
        model, images[:1], seed=3
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": torch.zeros(2, 4)}, "images is"),
        ({"trace": "all"}, "trace is 'all'"),
        ({"probes": 0}, "probes is 0"),
        ({"rtol": -1.0}, "rtol is -1"),
    ],
)
def test_wrong_arguments_of_the_likelihood_are_named(options, message):
    given = {"images": torch.zeros(2, 3), **options}
    with pytest.raises(ValueError, match=message):
        fg.log_likelihood(gaussian(fg.Flow()), **given)
