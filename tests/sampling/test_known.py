"""Known pixels, masks and measurements, on Gaussians and mixtures whose conditionals are known."""

import math

import pytest
import torch
from exact import PROCESSES, prediction_for, two_classes
from recorder import captured

import fastguide as fg
from fastguide.nets import GaussianMixture
from fastguide.solvers import SOLVERS

LABELS = torch.tensor([0, 1, 1])


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"annealed_langevin"}))
def test_every_solver_keeps_known_pixels_exactly(name):
    model = two_classes(fg.EDM(0.1, 5.0))
    known = torch.randn(2, 4, 4)
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1.0
    guidance = fg.CFG(0.6 if "cfgpp" in name else 2.0)
    got = fg.sample(model, LABELS, guidance, name, 5, seeds=range(3), known=known, mask=mask)
    assert torch.equal(got[:, :, :2], known[:, :2].expand(3, 2, 2, 4)), name
    free = fg.sample(model, LABELS, guidance, name, 5, seeds=range(3))
    assert not torch.allclose(got[:, :, 2:], free[:, :, 2:], atol=1e-3), name


@pytest.mark.parametrize("graph", ["whole", "steps", True])
def test_from_captured_steps_and_beside_a_callback(graph):
    model = two_classes(fg.EDM(0.1, 5.0))
    known, mask = torch.randn(3, 2, 4, 4), torch.rand(2, 4, 4).round()
    eager = fg.Sampler(model, fg.CFG(2.0), "dpmpp_2m", 4)
    sampler = captured(model, fg.CFG(2.0), graph=graph, solver="dpmpp_2m", steps=4)
    want = eager(LABELS, range(3), known=known, mask=mask)
    seen = []

    def look(progress):
        seen.append(progress.x.clone())

    assert torch.equal(sampler(LABELS, range(3), known=known, mask=mask), want)
    assert torch.equal(sampler(LABELS, range(3), known=known, mask=mask, callback=look), want)
    assert len(seen) == 4
    assert torch.equal(seen[-1], want)
    plain = sampler(LABELS, range(3))
    assert torch.equal(plain, eager(LABELS, range(3)))


def test_a_soft_mask_blends_the_noised_image_at_every_level():
    model = two_classes(fg.Flow())
    known, m = torch.randn(2, 4, 4), 0.3
    levels = fg.Levels.from_times(fg.Flow(), [0.9, 0.5, 0.2])
    xs = []
    got = fg.sample(
        model,
        0,
        levels=levels,
        known=known,
        mask=torch.full((1, 1, 1), m),
        callback=lambda p: xs.append(p.x.clone()),
    )
    images = []
    fg.sample(
        model,
        0,
        levels=levels,
        callback=lambda p: images.append(p.denoised.clone()),
        known=known,
        mask=torch.full((1, 1, 1), m),
    )
    assert torch.allclose(got, m * known + (1 - m) * images[-1], atol=1e-6)
    assert torch.equal(xs[-1], got)


def gaussian(process, shape=(1, 1, 2), std=0.6):
    prediction = prediction_for(process)
    means = torch.stack([torch.full(shape, -1.0), torch.full(shape, 1.0)]).double()
    net = GaussianMixture(means, [std] * 2, [0.5, 0.5], process, prediction)
    return fg.Model(net, process, prediction, shape)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_inpainting_samples_the_conditional_of_a_mixture(name):
    """Two pixels, both -1 or both 1 with std 0.6: the second has the mean tanh(first /
    0.36). Replacement alone is far from it (0.18 of 0.60); resampled steps come near (0.55).
    """
    model, first, count = gaussian(PROCESSES[name]), 0.25, 1500
    known = torch.tensor([first, 0.0]).view(1, 1, 2)
    mask = torch.tensor([1.0, 0.0]).view(1, 1, 2)
    spacing = fg.karras(sigma_min=0.02, sigma_max=15.0)
    sampler = fg.Sampler(model, None, fg.resampled(times=20, jump=1), 40, spacing)
    got = sampler(None, range(count), known=known, mask=mask)
    assert torch.equal(got[..., 0], torch.full_like(got[..., 0], first))
    mean = math.tanh(first / 0.36)
    # three standard errors and what 20 repetitions leave
    assert got[..., 1].mean().item() == pytest.approx(mean, abs=3 * (1 / count) ** 0.5 + 0.05)
    assert got[..., 1].var().item() == pytest.approx(1.36 - mean**2, abs=0.12)
    alone = sampler.replaced(solver=fg.ddpm)(None, range(count), known=known, mask=mask)
    assert alone[..., 1].mean().item() < mean - 0.3


def test_grey_and_small_images_are_kept():
    model = two_classes(fg.EDM(0.1, 5.0), shape=(3, 4, 4))
    known = torch.randn(3, 4, 4)
    for part in (fg.grey, fg.pooled(2)):
        got = fg.sample(
            model, LABELS, fg.CFG(2.0), "heun", 6, seeds=range(3), known=known, measurement=part
        )
        want = part(known[None]).expand_as(got)
        torch.testing.assert_close(part(got), want, atol=2e-6, rtol=0)
        assert got.std(0).max() > 0.01
        free = fg.sample(model, LABELS, fg.CFG(2.0), "heun", 6, seeds=range(3))
        assert not torch.allclose(part(free), want, atol=0.1)


def test_the_noise_of_what_is_known_is_its_own_and_by_seed():
    model = two_classes(fg.EDM(0.1, 5.0))
    known, mask = torch.randn(2, 4, 4), torch.ones(2, 4, 4)
    xs = {}
    for seeds in ((5,), (4, 5)):
        seen = xs.setdefault(seeds, [])
        fg.sample(
            model,
            0,
            None,
            "ddpm",
            4,
            seeds=seeds,
            known=known,
            mask=mask,
            callback=lambda p, seen=seen: seen.append(p.x[-1].clone()),
        )
    noises = []
    for a, b, e in zip(xs[5,], xs[4, 5], range(1, 4), strict=False):
        assert torch.equal(a, b)
        sigma = fg.make_levels(model.process, 4).points[e].sigma
        n = (a - known) / sigma
        assert abs(n.std().item() - 1.0) < 0.5
        assert not torch.allclose(n, fg.noise([5], (2, 4, 4), e)[0], atol=0.1)
        noises.append(n)
    assert not torch.allclose(noises[0], noises[1], atol=0.1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"mask": torch.ones(2, 4, 4)}, ValueError, "mask is given, but not the known image"),
        ({"known": torch.ones(2, 4, 4)}, ValueError, "either a mask or a measurement"),
        ({"known": torch.ones(4, 4), "mask": torch.ones(4)}, ValueError, "known is torch.float32"),
        ({"known": "x", "mask": torch.ones(4)}, TypeError, "known is 'x'"),
        ({"known": torch.ones(2, 4, 4), "mask": torch.ones(3)}, ValueError, "should broadcast"),
        ({"known": torch.ones(2, 4, 4), "mask": torch.tensor(1.5)}, ValueError, "outside"),
        (
            {"known": torch.ones(2, 4, 4), "measurement": lambda x: 2 * x},
            ValueError,
            "should be a projection",
        ),
        (
            {"known": torch.ones(2, 4, 4), "measurement": lambda x: x[:, :1]},
            ValueError,
            "measurement returned",
        ),
        (
            {"known": torch.ones(2, 4, 4), "measurement": lambda x: x[..., :1].expand_as(x)},
            ValueError,
            "projection, but not an orthogonal one",
        ),
        (
            {"known": torch.full((2, 4, 4), math.nan), "mask": torch.ones(4)},
            ValueError,
            "not finite",
        ),
    ],
)
def test_errors(given, error, message):
    with pytest.raises(error, match=message):
        fg.sample(two_classes(fg.EDM()), 0, **given)
