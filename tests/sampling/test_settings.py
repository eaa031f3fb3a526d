"""Whatever the process has set, samples stay what they are, to the last bit."""

import multiprocessing
import os
import pickle
from contextlib import contextmanager

import children
import exact
import pytest
import torch
from test_perturbation import dit, model_of

import fastguide as fg


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def thread_count(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SETTINGS = {
    "fp64": lambda: default_dtype(torch.float64),
    "fp16": lambda: default_dtype(torch.float16),
    "bf16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "cpu": lambda: default_device("cpu"),
    "within meta": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "deterministic": deterministic,
    "three threads": lambda: thread_count(3),
    "bf16 elsewhere": lambda: torch.autocast("cuda", torch.bfloat16, enabled=False),
}


def energy(x, t):
    return x.square().flatten(1).sum(1)


LED = fg.EnergyGuidance(energy, 0.01, form="mean")


def results(staged, exactly):
    """Samples by most of what makes tensors: schedules, projections, masks, noise, requests."""
    run = {"steps": 3, "seeds": [1, 2]}
    both = fg.CFG(2.0, fg.linear(0.5, 1.0)) + fg.PAG(1.0) + fg.SAG(0.5)
    drawn = fg.TPG(2.0) + fg.SEG(1.0, sigma=1.0) + fg.NAG(2.0) + fg.TSG(1.5) + fg.SAG(0.2, "square")
    moving = fg.APG(fg.ICG(2.0), momentum=-0.5) + fg.EnergyGuidance(energy, 0.01)
    scales = torch.tensor([1.0, 2.0], dtype=torch.float32, device="cpu")
    found = [
        fg.sample(staged, [0, 1], both, **run),
        fg.sample(staged, [0, 1], drawn, clamp=fg.DynamicThreshold(), **run),
        fg.sample(exactly, [0, 1], fg.REG(fg.CFG(scales)).rescale(0.5), **run),
        fg.sample(exactly, 1, moving, "dpmpp_2m_sde", **run),
        fg.sample(exactly, None, fg.FDG(2.0, 3.0), "ddim_cfgpp", **run),
        fg.sample(exactly, 1, LED, "ddpm", noise="brownian", **run),
    ]
    sampler = fg.Sampler(staged, fg.CFG(2.0) + fg.PAG(1.0), steps=3)
    found.append(sampler.submit(0, 3, guidance=fg.CFG(1.5)).result(60))
    sampler.close()
    sampler.warmup(2)
    assert sampler.memory(2).run > 0
    return found


@pytest.fixture(scope="module")
def usual():
    models = (model_of(dit()), exact.two_classes(exact.PROCESSES["edm"], shape=(2, 8, 8)))
    return models, results(*models)


@pytest.mark.parametrize("name", SETTINGS)
def test_samples_are_the_same(usual, name):
    """Red before for default dtypes and devices: errors in the middle of a run."""
    models, want = usual
    with SETTINGS[name]():
        got = results(*models)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.float32
        assert one.device == other.device
        assert not one.requires_grad
        assert torch.equal(one, other)


def test_autocast_is_the_callers_wish():
    """It changes what the network computes, not what a sampler works with."""
    model = model_of(dit())
    want = fg.sample(model, [0, 1], fg.CFG(2.0), steps=3, seeds=[1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        got = fg.sample(model, [0, 1], fg.CFG(2.0), steps=3, seeds=[1, 2])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0.5)
    assert not torch.equal(got, want)


def broken():
    """A run that ends with NaN, in a process of its own."""

    def net(x, t, cond):
        return x * torch.nan

    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 2, 2))
    return fg.sample(model, steps=2, seeds=[4, 5])


def test_an_error_of_samples_comes_whole_out_of_another_process():
    """Red before: it could not be unpickled, and a pool waited for ever."""
    with pytest.raises(fg.NonFiniteError) as caught:
        broken()
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert error.evaluations == [1, 1]
    assert error.samples.shape == (2, 1, 2, 2)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_pools_of_processes(start):
    if start == "fork" and not hasattr(os, "fork"):
        pytest.skip("needs fork")
    torch.set_num_threads(1)
    want = [children.sample(number) for number in (3, 4)]
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.map_async(children.sample, [3, 4]).get(120) == want
        with pytest.raises(fg.NonFiniteError, match="1 of 1 samples"):
            pool.map_async(children.fail, [0]).get(120)


def test_a_network_in_double_precision_is_told_at_once():
    """Red before: an error of an op in the middle of the first run."""
    model = model_of(dit().double())
    with pytest.raises(ValueError, match=r"model.net is of torch.float64, .* name one as dtype"):
        fg.Sampler(model)
    assert fg.sample(model, dtype=torch.float32, steps=1).dtype == torch.float32
