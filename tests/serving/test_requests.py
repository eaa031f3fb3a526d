"""Requests in batches: each is what it would be alone, none is lost."""

import random
import threading
import time
from concurrent.futures import CancelledError

import exact
import pytest
import torch
from recorder import captured
from test_others import weak_dit
from test_perturbation import dit, model_of

import fastguide as fg

STEPS = 4
GUIDANCES = {
    "cfg": lambda s: fg.CFG(s),
    "cfg and pag": lambda s: fg.CFG(s) + fg.PAG(0.3 * s),
    "interval": lambda s: fg.CFG(s, fg.interval(0.2, 5.0)),
    "held": lambda s: fg.CFG(s, every=2),
    "icg": lambda s: fg.ICG(s),
    "nag": lambda s: fg.NAG(s),
    "reg": lambda s: fg.REG(fg.CFG(s)),
    "rescale": lambda s: fg.CFG(s).rescale(0.7),
    "apg": lambda s: fg.APG(fg.CFG(s), radius=2.0, momentum=-0.5),
}


@pytest.mark.parametrize("name", GUIDANCES)
def test_a_request_is_what_it_is_alone(name):
    model, make = model_of(dit()), GUIDANCES[name]
    sampler = fg.Sampler(model, make(3.0), steps=STEPS, max_batch=4, max_wait=0.2)
    scales = [3.0, 1.5, 5.0, 2.0, 1.0]
    futures = [sampler.submit(i % 5, 10 + i, guidance=make(s)) for i, s in enumerate(scales)]
    for i, (scale, future) in enumerate(zip(scales, futures, strict=True)):
        want = fg.sample(model, [i % 5], make(scale), steps=STEPS, seeds=[10 + i])[0]
        torch.testing.assert_close(future.result(60), want, rtol=1e-4, atol=1e-4)
    sampler.close()


@pytest.mark.parametrize("graph", [False, "whole", "steps"])
def test_requests_under_load(graph):
    """200 of them from 8 threads, with random seeds, conditions, scales and cancellations."""
    model = exact.two_classes(exact.PROCESSES["edm"])
    sizes, inner = [], model.net

    def net(x, t, cond):
        sizes.append(len(x) // 2)
        return inner(x, t, cond)

    counted = fg.Model(net, model.process, model.prediction, model.shape, null=2)
    options = {"steps": 3, "max_batch": 8, "max_wait": 0.01}
    if graph:  # batches are filled up to one of two sizes
        sampler = captured(counted, fg.CFG(2.0), graph=graph, **options)
        sampler.warmup([2, 8])
        captures, before = sampler.stats().captures, sampler.stats().samples
        sizes.clear()
    else:
        sampler = fg.Sampler(counted, fg.CFG(2.0), **options)
    results, lock = [], threading.Lock()

    def client(number):
        draw = random.Random(number)
        for _ in range(25):
            cond = draw.choice((0, 1, None))
            seed, scale = draw.randrange(10**6), draw.uniform(0.5, 6.0)
            future = sampler.submit(cond, seed, guidance=fg.CFG(scale))
            cancelled = draw.random() < 0.2 and future.cancel()
            with lock:
                results.append((cond, seed, scale, future, cancelled))
            if draw.random() < 0.3:
                time.sleep(0.002)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    for cond, seed, scale, future, cancelled in results:
        if cancelled:
            with pytest.raises(CancelledError):
                future.result(60)
            continue
        want = fg.sample(model, [cond], fg.CFG(scale), steps=3, seeds=[seed])[0]
        torch.testing.assert_close(future.result(60), want, rtol=1e-4, atol=1e-4)
    assert any(one[4] for one in results)
    sampler.close()
    if graph:
        stats = sampler.stats()
        assert stats.captures == captures
        assert stats.padded > 0
        assert stats.samples - before == sum(not one[4] for one in results)
        assert not sizes  # replays run no Python
        return
    assert max(sizes) <= 8
    assert max(sizes) > 1  # they were packed


def test_a_request_waits_no_longer_than_it_may():
    sampler = fg.Sampler(model_of(dit()), fg.CFG(2.0), steps=1, max_batch=64, max_wait=0.05)
    sampler.submit(0, 0).result(60)
    began = time.monotonic()
    sampler.submit(1, 1).result(60)
    assert 0.04 < time.monotonic() - began < 10.0
    sampler.close()


def test_a_sample_that_is_not_finite_fails_alone():
    model = exact.two_classes(exact.PROCESSES["edm"])

    def net(x, t, cond):
        bad = torch.where(cond == 1, torch.nan, 1.0).view(-1, 1, 1, 1)
        return model.net(x, t, cond) * bad

    broken = fg.Model(net, model.process, model.prediction, model.shape, null=2)
    sampler = fg.Sampler(broken, None, steps=2, max_batch=3, max_wait=0.5)
    good, bad, also = (sampler.submit(cond, cond) for cond in (0, 1, 0))
    assert torch.isfinite(good.result(60)).all()
    assert torch.isfinite(also.result(60)).all()
    with pytest.raises(fg.NonFiniteError, match="1 of 1 samples"):
        bad.result(60)
    sampler.close()


def test_an_error_of_the_network_reaches_those_who_wait():
    def net(x, t, cond):
        raise RuntimeError("out of order")

    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (2, 8, 8), null=5)
    sampler = fg.Sampler(model, None, steps=2)
    with pytest.raises(RuntimeError, match="out of order"):
        sampler.submit(0, 0).result(60)
    with pytest.raises(RuntimeError, match="out of order"):  # and the thread goes on
        sampler.submit(1, 1).result(60)
    sampler.close()


def test_conditions_of_different_shapes_run_apart():
    def net(x, t, cond):
        return x * cond["text"].mean((1, 2)).view(-1, 1, 1, 1)

    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 4, 4))
    sampler = fg.Sampler(model, None, steps=3, max_batch=4, max_wait=0.2)
    conds = [{"text": torch.randn(1, n, 8)} for n in (3, 5, 3, 5, 7)]
    futures = [sampler.submit(cond, i) for i, cond in enumerate(conds)]
    for i, (cond, future) in enumerate(zip(conds, futures, strict=True)):
        want = fg.sample(model, cond, steps=3, seeds=[i])[0]
        torch.testing.assert_close(future.result(60), want)
    sampler.close()


def test_closing_finishes_what_was_taken():
    sampler = fg.Sampler(model_of(dit()), fg.CFG(2.0), steps=2, max_batch=2)
    futures = [sampler.submit(i % 5, i) for i in range(5)]
    sampler.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="the sampler was closed"):
        sampler.submit(0, 0)
    sampler.close()


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (lambda: fg.CFG(2.0) + fg.PAG(1.0), "guidance has a delta at .* that the sampler's own"),
        (lambda: fg.CFG(2.0, every=2), "guidance has a delta at"),
        (lambda: fg.REG(fg.CFG(2.0)), "guidance has a delta at"),
        (lambda: fg.AutoGuidance(model_of(weak_dit()), 2.0), "guidance has a delta at"),
        (lambda: fg.NAG(2.0), "guidance has a NAG at"),
        (lambda: fg.CFG(torch.tensor([2.0, 3.0])), "guidance holds values for 2 samples"),
    ],
)
def test_a_guidance_that_the_sampler_has_not(guidance, message):
    sampler = fg.Sampler(model_of(dit()), fg.CFG(3.0), steps=STEPS)
    with pytest.raises(ValueError, match=message):
        sampler.submit(0, 0, guidance=guidance())
    with pytest.raises(ValueError, match=r"cond has 9"):
        sampler.submit(9, 0)
    with pytest.raises(ValueError, match="seed is -1"):
        sampler.submit(0, -1)
    with pytest.raises(TypeError, match=r"seed is \[1\]"):
        sampler.submit(0, [1])
    with pytest.raises(ValueError, match="max_batch is 0"):
        fg.Sampler(model_of(dit()), None, max_batch=0)
    with pytest.raises(ValueError, match="max_wait is -1"):
        fg.Sampler(model_of(dit()), None, max_wait=-1.0)
