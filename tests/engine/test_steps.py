"""Runs from step graphs: one for each kind of evaluation, told its row by a counter."""

import sys

import exact
import pytest
import torch
from recorder import captured
from test_graph import kinds_of
from test_perturbation import dit, model_of

import fastguide as fg

SOLVERS = {
    "ddim, eta": lambda: fg.ddim(eta=0.7),
    "heun, churn": lambda: fg.heun(churn=10.0),
    "2m": lambda: fg.dpmpp_2m,
    "3m": lambda: fg.dpmpp_3m,
    "sde": lambda: fg.dpmpp_2m_sde,
    "ancestral": lambda: fg.euler_ancestral,
    "cfg++": lambda: fg.ddim_cfgpp,
    "unipc": lambda: fg.unipc,
    "plms": lambda: fg.plms,
    "stages": lambda: fg.dpm_single,
    "path": lambda: fg.dpmpp_sde,
    "sa": lambda: fg.sa_solver,
    "2s, cfg++": lambda: fg.dpmpp_2s_ancestral_cfgpp,
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_kind_of_solver(name):
    model, solver = exact.two_classes(exact.PROCESSES["edm"]), SOLVERS[name]()
    sampler = captured(model, fg.CFG(2.0), graph="steps", solver=solver, steps=7)
    eager = fg.Sampler(model, fg.CFG(2.0), solver, steps=7)
    for labels, seeds in (([0, 1], [5, 6]), ([1, 1], [7, 2**62])):
        assert torch.equal(sampler(labels, seeds), eager(labels, seeds))
    # one for the start, for each way to read and write the slots, and for the last
    assert sampler.stats().captures <= 7


def test_the_kinds_are_few():
    model = model_of(dit())
    for guidance, count in ((None, 3), (fg.CFG(3.0), 3), (fg.CFG(3.0, every=2), 4)):
        sampler = captured(model, guidance, graph="steps", steps=20)
        sampler([1], [5])
        assert sampler.stats().captures == count == kinds_of(sampler)
        assert sampler.stats().replays == 21


@pytest.mark.parametrize("threshold", [None, 0.8, fg.DynamicThreshold(0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamps_and_16_bit_networks(dtype, threshold):
    model, guidance = model_of(dit()), fg.APG(fg.CFG(3.0) + fg.PAG(1.0))
    options = {"dtype": dtype, "clamp": threshold, "solver": fg.ddpm, "steps": 4}
    sampler = captured(model, guidance, graph="steps", **options)
    eager = fg.Sampler(model, guidance, **options)
    for seeds in ([5, 6], [7, 8]):
        assert torch.equal(sampler([1, 2], seeds), eager([1, 2], seeds))


def test_a_gradient_that_moves_the_mean_of_the_noise():
    model = model_of(dit())

    def classifier(x, t):
        return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], dim=1)

    guidance = fg.ClassifierGuidance(classifier, 0.7, form="mean")
    sampler = captured(model, guidance, graph="steps", solver=fg.ddpm, steps=5)
    eager = fg.Sampler(model, guidance, fg.ddpm, 5)
    for seeds in ([5, 6], [7, 8]):
        assert torch.equal(sampler([1, 0], seeds), eager([1, 0], seeds))


def test_given_noise():
    model = model_of(dit())
    sampler = captured(model, fg.CFG(3.0), graph="steps", solver=fg.ddpm, steps=4)
    eager = fg.Sampler(model, fg.CFG(3.0), fg.ddpm, 4)
    for seed in (0, 1):
        torch.manual_seed(seed)
        noises = [torch.randn(2, 2, 8, 8) for _ in range(4)]
        given = {"noise": noises[0], "step_noise": noises[1:]}
        assert torch.equal(sampler([1, 2], [0, 0], **given), eager([1, 2], [0, 0], **given))


def test_a_callback_runs_between_replays():
    model = model_of(dit())
    sampler = captured(model, fg.CFG(3.0), graph="steps", steps=4)
    eager, seen = fg.Sampler(model, fg.CFG(3.0), steps=4), ([], [])
    sampler._runner.sizes.add(3)  # the padding is not shown

    def watch(into):
        return lambda p: into.append((p.evaluation, p.at, p.x.clone(), p.denoised.clone()))

    for seeds in ([5, 6], [7, 8]):
        for one, into in zip((sampler, eager), seen, strict=True):
            one([1, 2], seeds, callback=watch(into))
    assert len(seen[0]) == 8
    for got, want in zip(*seen, strict=True):
        assert got[:2] == want[:2]
        torch.testing.assert_close(got[2:], want[2:], rtol=1e-5, atol=1e-5)
    count = sampler.stats().captures
    sampler([1, 2], [3, 4], callback=lambda progress: None)
    assert sampler.stats().captures == count
    with pytest.raises(RuntimeError, match="a callback called the sampler"):
        sampler([1, 2], [3, 4], callback=lambda progress: sampler([1, 2], [3, 4]))
    assert torch.isfinite(sampler([1, 2], [3, 4])).all()


def test_adaptive_guidance_drops_its_rows():
    def net(x, t, cond):
        rows.append(len(x))
        return x * (1.0 + 0.3 * (cond == 1).view(-1, 1, 1, 1) * t.view(-1, 1, 1, 1))

    rows, steps = [], 12
    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (2, 4, 4), null=3)
    guidance = fg.Adaptive(fg.CFG(3.0), 0.0)  # the angle is 0: off after the first evaluation
    sampler = captured(model, guidance, graph="steps", steps=steps)
    got = sampler([1, 1], [5, 6])
    graphs = next(iter(sampler._runner.graphs.kept.values())).graphs
    launched = []
    counted = {
        name: (lambda n=name, r=replay: (launched.append(n), r()), outputs)
        for name, (replay, outputs) in graphs.items()
    }
    graphs.update(counted)
    again = sampler([1, 1], [5, 6])
    assert torch.equal(again, got)
    torch.testing.assert_close(got, fg.Sampler(model, guidance, steps=steps)([1, 1], [5, 6]))
    # the start, with both branches, the last with both, and from then on with one
    assert len(launched) == steps + 1
    assert launched[3:-1] == [launched[3]] * (steps - 3)
    assert launched[3] not in launched[:3]


def test_a_choice_by_size(monkeypatch):
    model = model_of(dit())
    sampler = captured(model, fg.CFG(3.0), graph=True, steps=4)
    sampler([1], [5])
    assert sampler.stats().captures == 1  # whole
    monkeypatch.setattr(sys.modules["fastguide.sampling.running"], "WHOLE_NODES", 10)
    sampler = captured(model, fg.CFG(3.0), graph=True, steps=4)
    sampler([1], [5])
    assert sampler.stats().captures == kinds_of(sampler)
    latching = captured(model, fg.Adaptive(fg.CFG(3.0)), graph=True, steps=4)
    latching([1], [5])
    assert latching.stats().captures > 1


def test_the_size_is_counted():
    from fastguide.engine.measure import count_nodes
    from fastguide.sampling.inputs import make_inputs

    def net(x, t, cond):
        for _ in range(50):
            x = x + 1.0
        return x.view(-1).view(x.shape)

    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 4, 4), null=0)
    sampler = fg.Sampler(model, None, steps=7)
    inputs = make_inputs(sampler._planned, None, None, torch.arange(2))
    known = (sampler.plan, sampler._planned.passes["batched"], inputs.conditions, inputs.seeds)
    count = count_nodes(*known, (1, 4, 4), torch.float32, 1)
    assert 7 * 50 <= count <= 7 * 60
