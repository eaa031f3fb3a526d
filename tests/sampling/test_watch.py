"""Callbacks that look, write and stop: eagerly and from captured steps."""

import pytest
import torch
from exact import two_classes
from recorder import captured

import fastguide as fg
from fastguide.solvers import SOLVERS


def net(x, t, cond):
    return 0.3 * torch.tanh(x.float()).to(x.dtype) + cond.view(-1, 1, 1, 1)


MODEL = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (3, 6, 6), null=torch.zeros(()))
LEVELS = fg.Levels.from_times(fg.Flow(), [1.0, 0.7, 0.4, 0.1])
NOISE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def by_hand(scale, before=None):
    x, seen = NOISE.double(), []
    for i, (now, to) in enumerate(LEVELS.steps()):
        seen.append(x.clone())
        x = x + (to.sigma - now.sigma) * (0.3 * torch.tanh(x) + scale * 1.0)
        if i == 1:
            x[..., :3] = 0.5
    return x.float()


def put_back(progress):
    if progress.evaluation == 2:
        progress.x[..., :3] = 0.5


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_a_callback_writes_is_what_the_next_evaluation_sees(scale):
    guidance = None if scale == 1 else fg.CFG(scale)
    sampler = fg.Sampler(MODEL, guidance, levels=LEVELS)
    got = sampler(torch.ones(2), [0, 1], noise=NOISE, callback=put_back)
    assert torch.allclose(got, by_hand(scale), atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_same_from_captured_steps(scale):
    guidance = None if scale == 1 else fg.CFG(scale)
    sampler = captured(MODEL, guidance, graph="steps", levels=LEVELS)
    for _ in range(2):
        got = sampler(torch.ones(2), [0, 1], noise=NOISE, callback=put_back)
        assert torch.allclose(got, by_hand(scale), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_evaluates_what_was_written(name, dtype):
    seen = []

    def looking(x, t, cond):
        seen.append(x.float().clone())
        return (0.1 * torch.tanh(x.float()) + cond.view(-1, 1, 1, 1)).to(x.dtype)

    model = fg.Model(looking, fg.EDM(0.1, 5.0), fg.Prediction("edm"), (1, 2, 2), torch.zeros(()))
    written = []

    def write(progress):
        progress.x.fill_(0.25 + progress.evaluation)
        written.append(0.25 + progress.evaluation)

    sampler = fg.Sampler(model, fg.CFG(3.0), name, 4, dtype=dtype)
    sampler(torch.ones(2), [0, 1], callback=write)
    rows = sampler.plan.rows
    evaluated = [e for e, row in enumerate(rows) if row.at is not None]
    assert len(seen) == len(evaluated) == len(written)
    for x, value, e in zip(seen[1:], written, evaluated[1:], strict=False):
        at = rows[e].at
        if rows[e - 1].at is None:  # noise leads what was written back up
            continue
        want = (model.prediction.input_scale(at) * torch.full_like(x, value)).to(dtype).float()
        assert torch.allclose(x, want, rtol=1e-6 if dtype == torch.float32 else 8e-3), name
        assert len(x) in (2, 4)


def test_a_callback_that_only_looks_changes_no_bit():
    model = two_classes(fg.EDM(0.1, 5.0))
    sampler = fg.Sampler(model, fg.CFG(2.0), fg.heun, 5)
    plain = sampler(torch.tensor([0, 1]), [3, 4])
    assert torch.equal(sampler(torch.tensor([0, 1]), [3, 4], callback=lambda p: None), plain)


@pytest.mark.parametrize("graph", [False, "steps"])
def test_stop_ends_the_run_with_the_denoised_image(graph):
    make = captured if graph else fg.Sampler
    options = {"graph": "steps"} if graph else {}
    sampler = make(MODEL, fg.CFG(3.0), levels=LEVELS, **options)
    images, calls = [], []

    def stop(progress):
        calls.append(progress.evaluation)
        images.append(progress.denoised.clone())
        return fg.STOP if progress.evaluation == 2 else None

    got = sampler(torch.ones(2), [0, 1], noise=NOISE, callback=stop)
    assert calls == [1, 2]
    assert torch.equal(got, images[1])
    assert not torch.equal(images[0], images[1])
