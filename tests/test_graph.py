"""The logic of captured runs, with only CUDA's own calls faked: a replay runs the captured call
again on the captured addresses.
"""

import threading

import pytest
import torch
from test_perturbation import dit, model_of
from torch.utils._pytree import tree_flatten

import fastguide as fg
from fastguide.engine.graph import Graphs

STEPS = 3


class Fake:
    """Replays by running the call again and writing to the outputs of the capture."""

    def __init__(self, fails=0):
        self.warmed = self.released = 0
        self.fails, self.seen = fails, []

    def warm(self, call):
        self.warmed += 1
        call()

    def record(self, call):
        if self.fails:
            self.fails -= 1
            raise torch.OutOfMemoryError("out of memory")
        outputs = call()
        fixed, _ = tree_flatten(outputs)

        def replay():
            self.seen.append(threading.get_ident())
            for to, value in zip(fixed, tree_flatten(call())[0], strict=True):
                to.copy_(value)

        return replay, outputs

    def release(self):
        self.released += 1


def captured(model, guidance, limit=8, fails=0, **options):
    """A sampler with a faked recorder."""
    sampler = fg.Sampler(model, guidance, steps=STEPS, **options)
    sampler._graphs = Graphs(Fake(fails), limit)
    return sampler


@pytest.mark.parametrize(
    "guidance",
    [
        lambda: None,
        lambda: fg.CFG(3.0),
        lambda: fg.CFG(3.0, fg.interval(0.3, 2.0)) + fg.PAG(1.0),
        lambda: fg.ICG(3.0),
        lambda: fg.REG(fg.CFG(3.0)),
        lambda: fg.NAG(3.0),
        lambda: fg.APG(fg.CFG(3.0), radius=2.0, momentum=-0.5).rescale(0.5),
        lambda: fg.CFG(torch.tensor([2.0, 3.0])),
        lambda: fg.EnergyGuidance(lambda x, t: x.square().sum((1, 2, 3)), 0.05, of="denoised"),
    ],
)
def test_a_replay_is_the_eager_run(guidance):
    model = model_of(dit())
    sampler, eager = captured(model, guidance()), fg.Sampler(model, guidance(), steps=STEPS)
    for labels, seeds in (([1, 2], [5, 6]), ([3, 0], [7, 8]), ([4, 4], [1, 0])):
        assert torch.equal(sampler(labels, seeds), eager(labels, seeds))
    assert (sampler.stats().captures, sampler.stats().replays) == (1, 3)


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
    assert sampler.stats().captures == 4
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


def test_the_least_recently_used_capture_goes():
    sampler = captured(model_of(dit()), fg.CFG(3.0), limit=2)
    counts = []
    for batch in (1, 2, 1, 3, 1, 2):
        sampler([0] * batch, range(batch))
        counts.append(sampler.stats().captures)
    assert counts == [1, 2, 2, 3, 3, 4]
    assert len(sampler._graphs.kept) == 2


def test_a_capture_that_does_not_fit_leaves_nothing():
    sampler = captured(model_of(dit()), fg.CFG(3.0), fails=1)
    with pytest.raises(torch.OutOfMemoryError):
        sampler([1], [5])
    assert sampler._graphs.recorder.released == 1
    assert not sampler._graphs.kept
    assert torch.isfinite(sampler([1], [5])).all()
    assert sampler.stats().captures == 1


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


def test_two_samplers_on_one_network_do_not_disturb_each_other():
    model = model_of(dit())
    one, two = captured(model, fg.CFG(3.0)), captured(model, fg.CFG(1.5) + fg.PAG(1.0))
    alone = [one([1], [5]), two([2], [6])]
    assert torch.equal(one([1], [5]), alone[0])
    assert torch.equal(two([2], [6]), alone[1])


def test_graphs_need_a_gpu():
    with pytest.raises(ValueError, match="graph is True, but the sampler runs on cpu"):
        fg.Sampler(model_of(dit()), fg.CFG(3.0), graph=True)
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
