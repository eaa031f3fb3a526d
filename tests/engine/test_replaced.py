"""`Sampler.replaced`: other settings, the same network and captures where only numbers differ."""

import pytest
import torch
from recorder import captured
from test_perturbation import dit, model_of

import fastguide as fg

GUIDANCE = fg.APG(fg.CFG(3.0, fg.interval(0.2, 0.9, over="t")) + fg.PAG(1.0)).rescale(0.5)


def levels(power, steps=8):
    flow = fg.Flow()
    return fg.Levels(flow, tuple(flow.level((1 - i / steps) ** power) for i in range(steps + 1)))


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_numbers_need_no_capture(graph):
    model = model_of(dit())
    options = {"solver": fg.ddim(eta=0.3), "levels": levels(1.0), "clamp": 3.0}
    sampler = captured(model, fg.CFG(3.0) + fg.NAG(2.0), graph=graph, **options)
    sampler([1, 2], [5, 6])
    captures = sampler.stats().captures
    for changes in (
        {"solver": fg.ddim(eta=0.7)},
        {"levels": levels(1.7)},
        {"guidance": fg.CFG(5.5) + fg.NAG(4.0)},
        {"guidance": fg.CFG(torch.tensor([2.0, 4.0])) + fg.NAG(2.0)},
        {"clamp": (-1.0, 0.9)},
        {"guidance": fg.CFG(fg.linear(4.0, 2.0)) + fg.NAG(1.5), "solver": fg.ddim(eta=0.9)},
    ):
        other = sampler.replaced(**changes)
        eager = fg.Sampler(model, **{"guidance": sampler.guidance, **options, **changes})
        assert torch.equal(other([1, 2], [5, 6]), eager([1, 2], [5, 6])), changes
        assert other.stats().captures == captures, changes
        assert other.stats().runs == 1
    want = fg.Sampler(model, sampler.guidance, **options)([1, 2], [5, 6])
    assert torch.equal(sampler([1, 2], [5, 6]), want)


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_another_structure_is_another_capture(graph):
    model = model_of(dit())
    sampler = captured(model, GUIDANCE, graph=graph, solver=fg.ddim(eta=0.3), steps=8)
    sampler([1, 2], [5, 6])
    count = sampler.stats().captures
    same = fg.APG(fg.CFG(4.0, fg.interval(0.21, 0.91, over="t")) + fg.PAG(2.0)).rescale(0.5)
    other = sampler.replaced(guidance=same)
    other([1, 2], [5, 6])
    assert sampler.stats().captures == count
    wider = fg.APG(fg.CFG(3.0, fg.interval(0.2, 1.0, over="t")) + fg.PAG(1.0)).rescale(0.5)
    for changes in (
        {"guidance": wider},  # another pattern at an evaluation
        {"guidance": GUIDANCE.guidance},  # not rescaled
        {"solver": fg.ddim},  # draws no noise
        {"solver": fg.dpmpp_2m},
        {"steps": 5},
        {"clamp": fg.DynamicThreshold()},
    ):
        other = sampler.replaced(**changes)
        eager = fg.Sampler(
            model, **{"guidance": GUIDANCE, "solver": fg.ddim(eta=0.3), "steps": 8, **changes}
        )
        assert torch.equal(other([1, 2], [5, 6]), eager([1, 2], [5, 6])), changes
        assert other.stats().captures > count, changes
        count = other.stats().captures


def test_what_is_shared():
    model = model_of(dit())
    sampler = captured(model, fg.CFG(3.0), graph="whole", steps=3)
    sampler.warmup([2, 4])
    other = sampler.replaced(guidance=None)
    assert other.net is sampler.net
    assert other._runner.graphs is sampler._runner.graphs
    assert other._runner.measured == sampler._runner.measured
    assert other.guidance is None
    other([0, 1, 2], [0, 1, 2])
    assert (other.stats().padded, sampler.stats().padded) == (1, 0)
    future = other.submit(1, 1)
    torch.testing.assert_close(future.result(60), fg.sample(model, [1], steps=3, seeds=[1])[0])
    other.close()
    sampler.submit(1, 1).result(60)  # its own requests go on
    sampler.close()


def test_networks_that_must_be_differentiable():
    model = model_of(dit().requires_grad_(True))
    sampler = captured(model, fg.CFG(3.0), graph="whole", steps=3)
    want = sampler([1], [5])
    other = sampler.replaced(guidance=fg.REG(fg.CFG(3.0)))
    eager = fg.Sampler(model, fg.REG(fg.CFG(3.0)), steps=3)
    assert torch.equal(other([1], [5]), eager([1], [5]))
    assert torch.equal(sampler([1], [5]), want)


def test_errors():
    sampler = fg.Sampler(model_of(dit()), fg.CFG(3.0), steps=3)
    with pytest.raises(TypeError, match="dtype cannot be replaced; what can: guidance, solver"):
        sampler.replaced(dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="guidance is 3"):
        sampler.replaced(guidance=3.0)
    with pytest.raises(TypeError, match="solver is 3"):
        sampler.replaced(solver=3)
