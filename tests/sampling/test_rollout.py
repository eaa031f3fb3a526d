"""Rollouts: the log-probability of a step is that of the Gaussian which the solver draws from."""

import math

import exact
import pytest
import torch
from torch.distributions import Normal

import fastguide as fg


@pytest.mark.parametrize("process", exact.PROCESSES.values(), ids=exact.PROCESSES)
def test_log_probs_are_the_closed_form_of_ddim(process):
    """For every step, from the network's own prediction: mean and deviation of DDIM with eta 1."""
    model = exact.two_classes(process)
    rollout = fg.Sampler(model, solver=fg.ddim(eta=1.0), steps=5).rollout([0, 1, 1], [4, 5, 6])
    labels = torch.tensor([0, 1, 1])
    levels = [*rollout.levels, None]
    stochastic = 0
    for k, now in enumerate(rollout.levels):
        x, after, std = rollout.x[k], rollout.x[k + 1], rollout.stds[k]
        scaled = model.prediction.input_scale(now) * x
        time = model.prediction.net_time(now)
        assert math.isclose(rollout.times[k], time, rel_tol=1e-6)
        a, b = model.prediction.denoised(now)
        denoised = a * x + b * model.net(scaled, torch.full((3,), time), labels)
        to = levels[k + 1]
        if std == 0.0:
            assert rollout.log_probs[k].eq(0.0).all()
            continue
        stochastic += 1
        ratio = (now.alpha * to.sigma) / (to.alpha * now.sigma)
        closed = to.sigma * math.sqrt(1.0 - ratio**2)
        assert math.isclose(std, closed, rel_tol=1e-5)
        keep = math.sqrt(max(to.sigma**2 - std**2, 0.0)) / now.sigma
        mean = to.alpha * denoised + keep * (x - now.alpha * denoised)
        # eps at a small alpha: the denoised image multiplies rounding by a = 1 / alpha
        loss = 2e-5 * max(1.0, abs(a))
        torch.testing.assert_close(after - std * rollout.noise[k], mean, rtol=1e-4, atol=loss)
        want = Normal(mean.double(), closed).log_prob(after.double()).flatten(1).sum(1)
        torch.testing.assert_close(rollout.log_probs[k], want, rtol=1e-4, atol=50.0 * loss)
    assert stochastic >= 3


def test_given_noise_is_what_counts():
    model = exact.two_classes(exact.PROCESSES["edm"])
    sampler = fg.Sampler(model, fg.CFG(2.0), fg.euler_ancestral, steps=4)
    own = sampler.rollout([0, 1], [4, 5])
    drawn = [n for n, std in zip(own.noise, own.stds, strict=True) if std > 0.0]
    draws = sum(row.draws for row in sampler.plan.rows[1:])
    given = [*drawn, *[torch.zeros_like(own.noise[0])] * (draws - len(drawn))]
    again = sampler.rollout([0, 1], [7, 8], noise=fg.noise([4, 5], model.shape), step_noise=given)
    assert torch.equal(own.x, again.x)
    assert torch.equal(own.log_probs, again.log_probs)
    assert torch.equal(own.samples, sampler([0, 1], [4, 5]))
    moved = sampler.rollout([0, 1], [4, 5], step_noise=[2.0 * n for n in given])
    assert (moved.log_probs[:-1] < own.log_probs[:-1]).all()


def test_what_has_no_density_is_refused():
    model = exact.two_classes(exact.PROCESSES["edm"])
    image = torch.zeros(model.shape)
    with fg.Server(model) as server, pytest.raises(ValueError, match="known is given with a roll"):
        server.submit(0, 0, known=image, mask=torch.ones(1), rollout=True)
