"""Starts from images, and inversion, on a mixture whose scores are known."""

import math
from itertools import pairwise

import pytest
import torch
from exact import PROCESSES, two_classes
from recorder import captured

import fastguide as fg

LABELS = torch.tensor([0, 1, 1])


def between(process, steps, low=0.15, high=3.0):
    """Levels evenly in log sigma, short of the data."""
    ratios = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
    return fg.Levels(process, tuple(map(process.at_ratio, ratios)))


def round_trip(process, solver, steps):
    model, levels = two_classes(process), between(process, steps)
    settings = {"guidance": fg.CFG(1.5), "solver": solver, "levels": levels}
    noisy = fg.sample(model, LABELS, levels=between(process, 200), seeds=range(3), solver="unipc")
    noise = fg.invert(model, noisy, LABELS, **settings)
    again = fg.sample(model, LABELS, noise=noise, seeds=range(3), **settings)
    return (again - noisy).norm().item()


@pytest.mark.parametrize(
    ("solver", "order"),
    [(fg.ddim, 1), (fg.heun, 2), (fg.dpm_2m, 2), (fg.dpmpp_2m, 2), (fg.deis, 2), (fg.unipc, 2)],
    ids=repr,
)
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_there_and_back_is_exact_to_the_solvers_order(name, solver, order):
    errors = [round_trip(PROCESSES[name], solver, steps) for steps in (24, 48)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] > order - 0.4, (errors, slopes)
    assert errors[-1] < {1: 0.4, 2: 0.04}[order]


@pytest.mark.parametrize("solver", ["ddim", "heun", "deis", "dpm_3m", "dpmpp_3m"])
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_from_images_to_the_top_and_back(name, solver):
    """Whole runs, to pure noise for flow, from data: the last step down is of order 1."""
    process = PROCESSES[name]
    model = two_classes(process)
    images = fg.sample(model, LABELS, None, "heun", 60, seeds=range(3))
    noise = fg.invert(model, images, LABELS, solver=solver, steps=60)
    assert noise.std().item() == pytest.approx(1.0, abs=0.35)
    again = fg.sample(model, LABELS, solver=solver, steps=60, seeds=range(3), noise=noise)
    assert (again - images).abs().max() < 0.25
    other = fg.sample(model, 1 - LABELS, solver=solver, steps=60, seeds=range(3), noise=noise)
    assert (other - images).abs().max() > 0.5  # edited by another condition


def test_inversion_needs_a_solver_that_draws_nothing():
    model = two_classes(fg.EDM())
    with pytest.raises(ValueError, match="draws noise, but an inversion needs a deterministic one"):
        fg.invert(model, torch.zeros(1, 2, 4, 4), 0, solver=fg.ddpm)
    with pytest.raises(ValueError, match=r"images is"):
        fg.invert(model, torch.zeros(2, 4, 4), 0)
    with pytest.raises(ValueError, match="needs 2 or more"):
        fg.invert(model, torch.zeros(1, 2, 4, 4), 0, steps=1)


@pytest.mark.parametrize(
    "solver", ["lms", "plms", "pndm", "ipndm", "deis:over=t", "gradient_estimation", "s_pndm"]
)
def test_what_extrapolates_over_growing_steps_cannot_be_inverted(solver):
    model, images = two_classes(fg.VP("cosine")), torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"its steps grow upwards.*take fastguide\.ddim"):
        fg.invert(model, images, 0, solver=solver, steps=6)
    with pytest.raises(ValueError, match="whose lower orders would come where"):
        fg.invert(model, images, 0, solver="dpm_fast", steps=6)


@pytest.mark.parametrize("solver", [fg.dpmpp_single, fg.res_multistep, fg.sa_solver(tau=0.0)])
def test_there_and_back_by_other_solvers(solver):
    errors = [round_trip(PROCESSES["flow"], solver, steps) for steps in (24, 48)]
    assert math.log2(errors[0] / errors[1]) > 1.8
    assert errors[1] < 0.01


@pytest.mark.parametrize("graph", [False, "whole", "steps"])
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_a_run_from_an_image_starts_at_its_noised_image(name, graph):
    process = PROCESSES[name]
    model = two_classes(process)
    init = torch.randn(3, 2, 4, 4)
    make = fg.Sampler if not graph else captured
    options = {"graph": graph} if graph else {}
    sampler = make(model, fg.CFG(2.0), steps=10, strength=0.6, **options)
    got = sampler(LABELS, range(3), init=init)
    full = fg.make_levels(process, 10)
    assert sampler.plan.levels.points == full.points[4:]
    first = full.points[4]
    x = first.alpha * init + first.sigma * fg.noise(range(3), (2, 4, 4))
    start = x if isinstance(process, fg.VP) else x / first.sigma
    levels = fg.Levels(process, full.points[4:])
    same = fg.sample(model, LABELS, fg.CFG(2.0), levels=levels, seeds=range(3), noise=start)
    assert torch.allclose(got, same, atol=2e-5)
    again = sampler(LABELS, range(3), init=init + 0.5)
    assert not torch.allclose(again, got, atol=1e-2)


def test_strength_as_a_level_and_at_its_ends():
    process = fg.Flow()
    model = two_classes(process)
    init = torch.randn(2, 4, 4)
    sampler = fg.Sampler(model, steps=4, strength=process.level(0.6))
    assert [round(p.t, 6) for p in sampler.plan.levels.points] == [0.6, 0.5, 0.25, 0.0]
    assert sampler(0, [1, 2], init=init).shape == (2, 2, 4, 4)
    all_of_it = fg.sample(model, 0, steps=4, seeds=[1], init=init, strength=1.0)
    assert torch.allclose(all_of_it, fg.sample(model, 0, steps=4, seeds=[1]), atol=1e-6)
    for strength in (0.0, 1.1, 0.1, float("nan"), process.level(0.0)):
        with pytest.raises(ValueError, match="strength is"):
            fg.Sampler(model, steps=4, strength=strength)


def test_a_start_and_its_image_belong_together():
    model, init = two_classes(fg.EDM()), torch.zeros(2, 4, 4)
    with pytest.raises(ValueError, match="no init to start from"):
        fg.sample(model, 0, strength=0.5)
    with pytest.raises(ValueError, match="init is given, but strength"):
        fg.sample(model, 0, init=init)
    with pytest.raises(ValueError, match=r"init is torch.float32 of shape"):
        fg.sample(model, 0, strength=0.5, init=init[:1])
    with pytest.raises(ValueError, match="requests start from noise"):
        fg.Sampler(model, strength=0.5).submit(0)


def test_part_of_the_way_and_back():
    model = two_classes(fg.EDM())
    images = fg.sample(model, LABELS, steps=60, seeds=range(3))
    settings = {"steps": 80, "strength": 0.5, "solver": "heun"}
    noise = fg.invert(model, images, LABELS, **settings)
    again = fg.sample(model, LABELS, init=images, noise=noise, seeds=range(3), **settings)
    assert torch.allclose(again, images, atol=0.02)
    plain = fg.sample(model, LABELS, init=images, seeds=range(3), **settings)
    assert not torch.allclose(plain, images, atol=0.02)
