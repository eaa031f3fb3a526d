"""The logic of captured runs, with only CUDA's own calls faked (recorder.py)."""

import gc
import threading

import pytest
import recorder
import torch
from recorder import Fake, live_tensors
from test_others import weak_dit
from test_perturbation import dit, model_of

import fastguide as fg
from fastguide.engine.graph import Graphs

STEPS = 3


def captured(model, guidance, steps=STEPS, **options):
    """A sampler with a faked recorder."""
    return recorder.captured(model, guidance, steps=steps, **options)


GUIDANCES = {
    "none": lambda: None,
    "cfg": lambda: fg.CFG(3.0),
    "interval": lambda: fg.CFG(3.0, fg.interval(0.3, 2.0)) + fg.PAG(1.0),
    "icg": lambda: fg.ICG(3.0),
    "tsg": lambda: fg.TSG(3.0),
    "sag": lambda: fg.SAG(0.5),
    "sag, random": lambda: fg.SAG(0.5, mask="random"),
    "held": lambda: fg.CFG(2.0, every=2) + fg.PAG(1.0, every=3),
    "reg": lambda: fg.REG(fg.CFG(3.0)),
    "reg, held": lambda: fg.REG(fg.CFG(3.0), every=2),
    "reg, difference": lambda: fg.REG(fg.CFG(3.0), "difference", every=3),
    "reg, chain": lambda: fg.REG(fg.CFG(3.0), "chain"),
    "nag": lambda: fg.NAG(3.0),
    "apg": lambda: fg.APG(fg.CFG(3.0), radius=2.0, momentum=-0.5).rescale(0.5),
    "apg, interval": lambda: fg.APG(fg.CFG(3.0, fg.interval(0.3, 2.0)), momentum=-0.5),
    "apg, reg": lambda: fg.APG(fg.REG(fg.CFG(3.0), every=2), momentum=-0.5),
    "per sample": lambda: fg.APG(fg.CFG(torch.tensor([2.0, 3.0]))),
    "energy": lambda: fg.EnergyGuidance(squares, 0.05, of="denoised"),
    "energy, held": lambda: fg.EnergyGuidance(squares, 0.05, of="denoised", every=2),
    "fdg": lambda: fg.FDG(2.0, 4.0),
    "zero star": lambda: fg.CFGZeroStar(fg.CFG(3.0), zero_steps=1),
    "autoguidance": lambda: fg.AutoGuidance(model_of(weak_dit()), 2.0),
}


def squares(x, t):
    return x.square().sum((1, 2, 3))


@pytest.mark.parametrize("graph", ["whole", "steps"])
@pytest.mark.parametrize("name", GUIDANCES)
def test_a_replay_is_the_eager_run(name, graph):
    model, guidance = model_of(dit()), GUIDANCES[name]()
    steps = 6 if graph == "steps" else STEPS
    sampler = captured(model, guidance, graph=graph, steps=steps)
    eager = fg.Sampler(model, guidance, steps=steps)
    captures = []
    for labels, seeds in (([1, 2], [5, 6]), ([3, 0], [7, 8]), ([4, 4], [1, 0])):
        assert torch.equal(sampler(labels, seeds), eager(labels, seeds))
        captures.append(sampler.stats().captures)
    kinds = 1 if graph == "whole" else kinds_of(eager)
    assert captures == [kinds] * 3
    assert sampler.stats().replays == 3 * (1 if graph == "whole" else len(eager.plan.rows))


def kinds_of(sampler):
    """How many rows of the plan differ in more than their numbers; for a flow network in fp32,
    which reads x itself where it is given one copy.
    """
    plan, found = sampler.plan, set()
    for e, row in enumerate(plan.rows):
        following = plan.rows[e + 1].pattern if e + 1 < len(plan.rows) else None
        copies = 0 if following is None else sampler._planned.passes["batched"][following].inputs
        masks = (row.reads, row.writes, row.draws, row.learned, row.extra)
        found.add((e == 0, row.pattern, copies if copies > 1 else 0, masks))
    return len(found)


def test_what_needs_a_capture_and_what_does_not():
    model = model_of(dit())
    sampler = captured(model, fg.CFG(3.0), solver=fg.ddim(eta=1.0), max_batch=2, max_wait=0.3)
    eager = fg.Sampler(model, fg.CFG(3.0), fg.ddim(eta=1.0), steps=STEPS)
    noise = torch.randn(2, 2, 8, 8)
    steps = [torch.randn(2, 2, 8, 8) for _ in range(STEPS - 1)]
    sampler([1, 2], [5, 6])
    for count, arguments in (
        (1, {"cond": [3, 0], "seeds": [9, 9]}),
        (1, {"cond": [3, 0], "seeds": [9, 9], "negative": [1, 1]}),
        (2, {"cond": [3, 0], "seeds": [9, 9], "noise": noise}),
        (2, {"cond": [3, 0], "seeds": [9, 9], "noise": -noise}),
        (3, {"cond": [3, 0], "seeds": [9, 9], "step_noise": steps}),
        (4, {"cond": [3, 0, 1], "seeds": [9, 9, 3]}),
    ):
        assert torch.equal(sampler(**arguments), eager(**arguments))
        assert sampler.stats().captures == count, arguments
    # another scale is another number in the same graph
    futures = [sampler.submit(i, i, guidance=fg.CFG(s)) for i, s in enumerate((2.0, 6.0))]
    for i, (scale, future) in enumerate(zip((2.0, 6.0), futures, strict=True)):
        want = fg.sample(model, [i], fg.CFG(scale), fg.ddim(eta=1.0), STEPS, [i])[0]
        torch.testing.assert_close(future.result(60), want, rtol=1e-4, atol=1e-4)
    assert sampler.captures == sampler.stats().captures == 4
    sampler.close()


def test_results_are_copies():
    sampler = captured(model_of(dit()), fg.CFG(3.0))
    first = sampler([1], [5])
    kept = first.clone()
    sampler([2], [6])
    assert torch.equal(first, kept)


def test_a_callback_runs_eagerly():
    sampler, seen = captured(model_of(dit()), fg.CFG(3.0)), []
    want = sampler([1], [5])
    got = sampler([1], [5], callback=lambda progress: seen.append(progress.evaluation))
    assert torch.equal(got, want)
    assert seen == list(range(1, STEPS + 1))
    assert sampler.stats().replays == 1


def test_batches_are_filled_up_to_a_size_of_warmup():
    model = model_of(dit())
    sampler = captured(model, fg.CFG(3.0), rows="batched")
    sampler.warmup([2, 4])
    assert sampler.stats().captures == 2
    for batch in (1, 2, 3, 4):
        labels, seeds = [i % 5 for i in range(batch)], range(10, 10 + batch)
        got = sampler(labels, seeds)
        assert got.shape == (batch, 2, 8, 8)
        want = fg.sample(model, labels, fg.CFG(3.0), steps=STEPS, seeds=seeds)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert sampler.stats().captures == 2
    assert sampler.stats().padded == 2
    sampler([0] * 5, range(5))  # larger than all: a capture of its own
    assert sampler.stats().captures == 3


@pytest.mark.parametrize("mode", ["batched", "sequential"])
def test_a_batch_that_is_filled_up_runs_as_that_size_does(mode):
    sampler = captured(model_of(dit()), fg.CFG(3.0))
    sampler.warmup([4])
    sampler._runner.measured[4] = mode  # whatever was faster
    sampler([0] * 4, range(4))
    captures = sampler.stats().captures
    sampler([0] * 3, range(3))
    assert sampler.stats().captures == captures


def test_the_least_recently_used_capture_goes():
    sampler = captured(model_of(dit()), fg.CFG(3.0), limit=2)
    counts = []
    for batch in (1, 2, 1, 3, 1, 2):
        sampler([0] * batch, range(batch))
        counts.append(sampler.stats().captures)
    assert counts == [1, 2, 2, 3, 3, 4]
    assert len(sampler._runner.graphs.kept) == 2


@pytest.mark.parametrize(("graph", "good"), [("whole", 0), ("steps", 0), ("steps", 2)])
def test_a_capture_that_does_not_fit_leaves_nothing(graph, good):
    sampler = captured(model_of(dit()), fg.CFG(3.0), fails=2, good=good, graph=graph)
    recorder = sampler._runner.graphs.recorder
    sampler.memory(4)  # what it sets up stays
    gc.collect()
    before = live_tensors()
    per_sample = sampler.memory(2).run - sampler.memory(1).run
    for free, advice in ((0, "not even one sample"), (3.5 * per_sample, "2|3 samples")):
        recorder.bytes, recorder.good = int(free), good
        with pytest.raises(torch.OutOfMemoryError, match=f"run of 4 samples does.*({advice}) may"):
            sampler([1] * 4, range(4))
        # what is left when memory is given back are the call's own inputs
        assert recorder.alive <= before + 16
    assert recorder.released == 2
    assert not sampler._runner.graphs.kept
    assert sampler.stats().captures == 0
    assert torch.isfinite(sampler([1], [5])).all()
    assert sampler.stats().captures == (1 if graph == "whole" else kinds_of(sampler))
    assert sampler.stats().fallbacks == 0


def test_an_error_while_a_capture_ends_hides_no_lack_of_memory():
    sampler = captured(model_of(dit()), fg.CFG(3.0))

    def record(call):
        try:
            raise torch.OutOfMemoryError("out of memory")
        finally:
            raise RuntimeError("capture was invalidated")

    sampler._runner.graphs.recorder.record = record
    with pytest.raises(torch.OutOfMemoryError, match="does not fit"):
        sampler([1], [5])


def test_a_fallback_is_asked_for():
    model = model_of(dit())
    sampler = captured(model, fg.CFG(3.0), fails=1, fallback=True)
    assert torch.equal(sampler([1], [5]), fg.sample(model, [1], fg.CFG(3.0), steps=3, seeds=[5]))
    assert (sampler.stats().fallbacks, sampler.stats().replays) == (1, 0)
    sampler([1], [5])
    assert (sampler.stats().fallbacks, sampler.stats().replays) == (1, 1)


def test_other_errors_are_not_hidden():
    def net(x, t, cond):
        raise RuntimeError("out of order")

    broken = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (2, 8, 8), null=5)
    sampler = captured(broken, None, fallback=True)
    with pytest.raises(RuntimeError, match="out of order"):
        sampler([1], [5])
    with pytest.raises(RuntimeError, match="out of order"):  # and nothing is locked
        sampler([1], [5])


@pytest.mark.parametrize("graph", ["whole", "steps"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network(backend, graph):
    torch._dynamo.reset()
    net = dit()
    model = model_of(torch.compile(net, backend=backend))
    sampler = captured(model, fg.CFG(3.0), graph=graph)
    for batch in (2, 3, 5):  # anew for the first two, and for the second with a symbolic size
        labels = [i % 5 for i in range(batch)]
        want = fg.sample(model_of(net), labels, fg.CFG(3.0), steps=STEPS, seeds=range(batch))
        for _ in range(2):
            got = sampler(labels, range(batch))
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert sampler.stats().captures == 3 * (1 if graph == "whole" else kinds_of(sampler))


def test_a_compiled_network_is_warm_before_a_capture():
    torch._dynamo.reset()
    calls = []

    def net(x, t, cond):
        return x * t.view(-1, 1, 1, 1)

    compiled = torch.compile(net, backend="eager")

    def counted(x, t, cond):
        before = dict(torch._dynamo.utils.counters["stats"]).get("unique_graphs", 0)
        out = compiled(x, t, cond)
        calls.append(dict(torch._dynamo.utils.counters["stats"])["unique_graphs"] - before)
        return out

    model = fg.Model(counted, fg.Flow(), fg.Prediction("flow"), (2, 8, 8), null=5)
    sampler = captured(model, None)
    sampler([1, 2], [5, 6])
    assert calls == [1, 0, 0] + [0] * STEPS + [0] * STEPS  # warm, warm again, captured


@pytest.mark.parametrize("graph", ["whole", "steps"])
def test_autocast_is_part_of_a_capture(graph):
    model, cached = model_of(dit().requires_grad_(True)), []
    inner = model.net

    def net(x, t, cond):
        cached.append(torch.is_autocast_cache_enabled())
        return inner(x, t, cond).float()

    wrapped = fg.Model(net, model.process, model.prediction, model.shape, null=5)
    sampler = captured(wrapped, None, graph=graph)
    eager = fg.Sampler(model, None, steps=STEPS)
    plain = sampler([1, 2], [5, 6])
    count = sampler.stats().captures
    with torch.autocast("cpu", torch.bfloat16):
        got, want = sampler([1, 2], [5, 6]), eager([1, 2], [5, 6])
        assert torch.is_autocast_cache_enabled()
        again = sampler([3, 2], [5, 6])
    assert torch.equal(got, want)
    assert not torch.equal(got, plain)
    assert torch.isfinite(again).all()
    assert sampler.stats().captures == 2 * count
    assert torch.equal(sampler([1, 2], [5, 6]), plain)
    assert sampler.stats().captures == 2 * count
    assert not any(cached)  # a cast weight that is kept would be freed under the graph


def test_calls_from_many_threads():
    model = model_of(dit())
    sampler, results = captured(model, fg.CFG(3.0)), {}

    def call(seed):
        results[seed] = sampler([seed % 5], [seed])

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, got in results.items():
        want = fg.sample(model, [seed % 5], fg.CFG(3.0), steps=STEPS, seeds=[seed])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert sampler.stats().captures == 1


@pytest.mark.parametrize("graph", [False, "whole", "steps"])
def test_two_samplers_on_one_network_do_not_disturb_each_other(graph):
    model = model_of(dit())
    guidances = (
        fg.APG(fg.CFG(3.0), momentum=-0.5),
        fg.REG(fg.CFG(1.5, every=2) + fg.PAG(1.0), every=2),
    )
    options = {"solver": fg.ddpm, "steps": 4}
    pair = [
        captured(model, one, graph=graph, **options) if graph else fg.Sampler(model, one, **options)
        for one in guidances
    ]
    alone = [fg.Sampler(model, one, **options)([1, 2], [5, 6]) for one in guidances]
    for _ in range(2):  # in turn
        for sampler, want in zip(pair, alone, strict=True):
            assert torch.equal(sampler([1, 2], [5, 6]), want)
    results = [[], []]  # at once

    def calls(number):
        for _ in range(6):
            results[number].append(pair[number]([1, 2], [5, 6]))

    threads = [threading.Thread(target=calls, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, want in zip(results, alone, strict=True):
        assert len(found) == 6
        assert all(torch.equal(one, want) for one in found)


def test_scales_per_sample_outlive_a_run():
    model = model_of(dit())
    sampler = fg.Sampler(model, fg.CFG(torch.tensor([2.0, 5.0])).rescale(0.7), steps=STEPS)
    assert torch.equal(sampler([1, 2], [5, 6]), sampler([1, 2], [5, 6]))


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="graph is True, but the sampler runs on cpu"):
        fg.Sampler(model_of(dit()), fg.CFG(3.0), graph=True)
    with pytest.raises(ValueError, match="graph is 'all'"):
        fg.Sampler(model_of(dit()), fg.CFG(3.0), graph="all")
    with pytest.raises(ValueError, match="device is cpu:1, but the network is on cpu"):
        fg.Sampler(model_of(dit()), fg.CFG(3.0), device="cpu:1")
    with pytest.raises(ValueError, match="limit is 0"):
        Graphs(Fake(), 0)


def test_the_counts():
    model = model_of(dit())
    interval = fg.CFG(3.0, fg.interval(0.2, 0.9, over="t"))
    sampler = fg.Sampler(model, interval + fg.PAG(1.0), steps=8)
    on = sum(len(row.pattern.branches) == 3 for row in sampler.plan.rows[1:])
    assert 0 < on < 8
    sampler([0, 1, 2], range(3))
    stats = sampler.stats()
    assert (stats.runs, stats.samples, stats.evaluations) == (1, 3, 8)
    assert stats.rows == 3 * (2 * 8 + on)
    assert stats.rows_skipped == 3 * (8 - on)
    # PAG's rows share all before the middle, CFG's the first convolution
    assert stats.stage_rows_shared > 0
    stages = len(model.net.stages)
    assert stats.stage_rows + stats.stage_rows_shared == stats.rows * stages
    sampler([0], 0)
    assert sampler.stats().samples == 4
    assert stats.samples == 3  # a copy


def test_memory_stays_flat_over_a_thousand_calls():
    import resource

    from fastguide.nets import GaussianMixture

    process, prediction = fg.EDM(sigma_max=10.0), fg.Prediction("edm")
    net = GaussianMixture(torch.zeros(1, 1, 64, 64), [0.5], [1.0], process, prediction)
    model = fg.Model(net, process, prediction, (1, 64, 64))
    sampler = fg.Sampler(model, None, steps=2)
    for i in range(200):
        sampler(None, [i])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(1000):
        sampler(None, [i])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * 1024  # kilobytes; a leak of one sample a call would be 16,000
