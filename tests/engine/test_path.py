"""Noise along a path: its law, that sums fit together, that runs of more steps meet."""

import math
from itertools import pairwise

import pytest
import torch
from exact import two_classes
from recorder import captured

import fastguide as fg
from fastguide import reference
from fastguide.engine.path import draw, make_path

LABELS = torch.tensor([0, 1, 1])


def at(s):
    """The level of flow at which the path stands at s."""
    return fg.Level(s, 1.0 - s, s)


def drawn(ends, seeds, shape):
    path = make_path([(at(a), at(b)) for a, b in ends], "cpu", torch.float32)
    return [draw(path, torch.tensor(e), seeds, shape) for e in range(len(ends))]


def test_increments_are_standard_normal_independent_and_fit_together():
    ends = [(1.0, 0.6), (0.6, 0.25), (0.25, 0.2), (0.2, 0.0), (1.0, 0.2), (0.9, 0.5)]
    count = 60_000
    found = [one.double() for one in drawn(ends, torch.arange(6), (count // 6,))]
    flat = torch.stack([one.flatten() for one in found])
    bound = 4.5 / count**0.5
    assert flat.mean(1).abs().max() < bound
    assert (flat.square().mean(1) - 1.0).abs().max() < bound * math.sqrt(2)
    assert (flat[0].pow(4).mean() - 3.0).abs() < bound * math.sqrt(96)
    products = flat @ flat.T / count
    overlap = torch.tensor(
        [[max(min(a, c) - max(b, d), 0) for c, d in ends] for a, b in ends], dtype=torch.float64
    )
    sizes = overlap.diagonal()
    want = overlap / (sizes[:, None] * sizes).sqrt()
    assert (products - want).abs().max() < bound * math.sqrt(2)
    # the increments over parts add up to that over the whole: ends lie within 2^-21 of the grid
    parts = sum(math.sqrt(a - b) * one for (a, b), one in zip(ends[:3], found[:3], strict=True))
    torch.testing.assert_close(parts, math.sqrt(0.8) * found[4], rtol=0, atol=2e-5)


def test_a_sample_alone_and_the_definition():
    """`W(s) = s Z_0 + sum of hats times normals by (seed, node, element)`, bit for bit by seed."""
    ends = [(0.75, 0.5)]
    many, alone = (
        drawn(ends, torch.tensor([3, 4, 9]), (2, 5))[0],
        drawn(ends, torch.tensor([9]), (2, 5))[0],
    )
    assert torch.equal(many[2:], alone)
    own = fg.ops.derive_seeds(torch.tensor([9]), 2**32 + 1)
    z = [reference.noise(own, node, 10).view(1, 2, 5) for node in range(4)]
    # W(3/4) - W(1/2): node 1 is the middle of [0, 1], node 3 that of [1/2, 1]
    want = ((0.75 - 0.5) * z[0] + 0.5 * (0.5 - 1.0) * z[1] + 2**-1.5 * z[3]) / math.sqrt(0.25)
    torch.testing.assert_close(alone.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("process", "solver"),
    [
        (fg.VP("cosine"), "ddpm"),
        (fg.Flow(), "euler_ancestral"),
        (fg.EDM(0.02, 20.0), "dpmpp_2m_sde"),
        (fg.EDM(0.02, 20.0), "dpmpp_3m_sde"),
        (fg.VP("cosine"), "predictor_corrector:corrections=0,predictor=reverse"),
        (fg.EDM(0.02, 20.0), "dpmpp_sde"),
        (fg.EDM(0.02, 20.0), "dpmpp_2s_ancestral"),
        (fg.Flow(), "er_sde"),
        (fg.Flow(), "sa_solver"),
    ],
)
def test_runs_of_more_steps_approach_one_image(process, solver):
    def ends(noise):
        runs = [
            fg.sample(
                two_classes(process), LABELS, None, solver, steps,
                seeds=range(3), spacing=fg.karras(sigma_min=0.05, sigma_max=10.0), noise=noise,
            )
            for steps in (20, 80, 320)
        ]  # fmt: skip
        return [(a - b).norm().item() for a, b in pairwise(runs)]

    coarse, fine = ends("brownian")
    assert fine < 0.75 * coarse
    assert fine < 0.4 * ends("independent")[1]


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_from_graphs_and_beside_all_that_scales_or_moves_noise(graph):
    model = two_classes(fg.EDM(0.1, 5.0))
    led = fg.ClassifierGuidance(lambda x, t: x.flatten(1)[:, :2], 0.7, form="mean")
    for guidance in (fg.CFG(2.0), led):
        settings = {"solver": "ddpm", "steps": 5, "noise": "brownian"}
        eager = fg.Sampler(model, guidance, **settings)
        want = eager(LABELS, range(3))
        sampler = captured(model, guidance, graph=graph, **settings)
        for seeds in (range(3), range(5, 8)):
            torch.testing.assert_close(sampler(LABELS, seeds), eager(LABELS, seeds))
        torch.testing.assert_close(eager(LABELS[1:2], [1]), want[1:2], rtol=1e-5, atol=1e-5)
        other = eager.replaced(noise="independent")(LABELS, range(3))
        assert not torch.allclose(other, want, atol=0.05)
        assert torch.equal(other, fg.sample(model, LABELS, guidance, "ddpm", 5, range(3)))


def test_what_is_no_path_is_named():
    model = two_classes(fg.EDM(0.1, 5.0))
    for solver in ("ddim", "consistency", fg.euler(churn=3.0), fg.restart(t_max=2.0)):
        with pytest.raises(ValueError, match=r"noise is 'brownian', but .* draws no noise that is"):
            fg.Sampler(model, None, solver, 6, noise="brownian")
    with pytest.raises(ValueError, match="noise is 'brown', but it should be one of"):
        fg.Sampler(model, None, "ddpm", noise="brown")
    near = fg.Levels(fg.Flow(), (at(0.5), at(0.5 - 1e-8), at(0.1)))
    with pytest.raises(ValueError, match="too close to tell apart"):
        fg.Sampler(two_classes(fg.Flow()), None, "ddpm", levels=near, noise="brownian")
