"""A pool of samplers: the least loaded one is asked, and one that fails, fails alone."""

import threading

import pytest
import torch
from test_perturbation import dit, model_of

import fastguide as fg


def gated(model, gate):
    """The model, whose network waits for the gate."""

    def net(x, t, cond):
        gate.wait(60)
        return model.net(x, t, cond)

    return fg.Model(net, model.process, model.prediction, model.shape, null=5)


def test_requests_go_to_the_least_loaded():
    model, gates = model_of(dit()), [threading.Event(), threading.Event()]
    samplers = [
        fg.Sampler(gated(model, gate), fg.CFG(2.0), steps=2, device="cpu", max_wait=0.0)
        for gate in gates
    ]
    pool = fg.Pool(samplers)
    gates[1].set()  # the second is fast
    futures = [pool.submit(0, 0)]
    assert pool.loads == [1, 0]
    for seed in range(1, 6):
        futures.append(pool.submit(seed % 5, seed))
        futures[-1].result(60)
    assert pool.loads == [1, 0]  # the first still waits
    futures.append(pool.submit(1, 6))
    futures.append(pool.submit(1, 7, guidance=fg.CFG(4.0)))
    gates[0].set()
    want = fg.sample(model, [3], fg.CFG(2.0), steps=2, seeds=[3])[0]
    torch.testing.assert_close(futures[3].result(60), want)
    assert all(torch.isfinite(future.result(60)).all() for future in futures)
    pool.close()
    assert pool.loads == [0, 0]
    assert samplers[1].stats().samples >= 5


def test_calls_take_turns():
    model = model_of(dit())
    pool = fg.Pool([fg.Sampler(model, fg.CFG(2.0), steps=2) for _ in range(2)])
    for seed in range(4):
        want = fg.sample(model, [1], fg.CFG(2.0), steps=2, seeds=[seed])
        assert torch.equal(pool([1], [seed], check=False), want)
    assert [sampler.stats().runs for sampler in pool.samplers] == [2, 2]
    assert torch.equal(pool([1], torch.tensor([3])), want)
    assert torch.equal(pool([1], iter([3])), want)
    assert torch.equal(pool(2, 9), fg.sample(model, 2, fg.CFG(2.0), steps=2, seeds=9))


def test_one_that_fails_fails_alone():
    model, calls = model_of(dit()), []

    def net(x, t, cond):
        calls.append(len(x))
        raise RuntimeError("the device is gone")

    broken = fg.Model(net, model.process, model.prediction, model.shape, null=5)
    samplers = [fg.Sampler(one, fg.CFG(2.0), steps=2) for one in (broken, model)]
    pool = fg.Pool(samplers, rest=1000.0)
    with pytest.raises(RuntimeError, match="the device is gone"):
        pool.submit(0, 0).result(60)
    pool.samplers[0].close()  # its thread has told of the failure
    for seed in range(5):
        assert torch.isfinite(pool.submit(0, seed).result(60)).all()
        assert torch.isfinite(pool(0, seed)).all()
    assert len(calls) == 1
    with pytest.raises(ValueError, match="cond has 9"):  # that of a request says nothing of it
        pool.submit(9, 0)
    assert torch.isfinite(pool(0, 0)).all()
    assert samplers[1].stats().samples == 11
    assert pool.loads == [0, 0]
    pool.close()
    with pytest.raises(ValueError, match="samplers is empty"):
        fg.Pool([])
    with pytest.raises(TypeError, match=r"samplers\[1\] is None"):
        fg.Pool([samplers[0], None])
    with pytest.raises(TypeError, match="samplers is 'ab'"):
        fg.Pool("ab")
    with pytest.raises(TypeError, match="seeds is 'ab'"):
        pool(0, "ab")


def test_one_that_takes_no_more_is_left_alone():
    """It would be asked again and again, as it has least to do."""
    samplers = [fg.Sampler(model_of(dit()), fg.CFG(2.0), steps=2) for _ in range(2)]
    pool = fg.Pool(samplers, rest=1000.0)
    samplers[0].close()
    with pytest.raises(RuntimeError, match="was closed"):
        pool.submit(0, 0)
    assert all(torch.isfinite(pool.submit(0, seed).result(60)).all() for seed in range(3))
    pool.close(60)
