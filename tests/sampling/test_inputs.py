"""Inputs as people have them give what the plain ones give."""

import pytest
import torch
from test_perturbation import dit, model_of

import fastguide as fg

NAMES = ("Red", "Green", "Blue")


@pytest.fixture(scope="module")
def model():
    plain = model_of(dit())
    return fg.Model(
        plain.net, plain.process, plain.prediction, plain.shape, plain.null, class_names=NAMES
    )


def test_labels_seeds_and_noise_in_any_form(model):
    numpy = pytest.importorskip("numpy")
    run = {"guidance": fg.CFG(2.0), "steps": 2}
    labels = torch.tensor([2, 0, 1])
    want = fg.sample(model, labels, seeds=[0, 1, 2], **run)
    for cond in (
        ["blue", "RED", 1],
        [2, 0, 1],
        numpy.array([2, 0, 1]),
        numpy.array(["Blue", "Red", "Green"]),
        (2, numpy.int64(0), torch.tensor(1)),
        labels.int(),
    ):
        assert torch.equal(fg.sample(model, cond, **run), want), cond
    for seeds in (
        0,
        range(3),
        numpy.arange(3),
        torch.tensor(0),
        torch.arange(3).int(),
        numpy.int64(0),
    ):
        assert torch.equal(fg.sample(model, labels, seeds=seeds, **run), want), seeds
    from_five = fg.sample(model, labels, seeds=5, **run)
    torch.testing.assert_close(from_five[1:2], fg.sample(model, 0, seeds=6, **run))
    noise = fg.noise(range(3), model.shape)
    for given in (noise, noise.numpy(), noise.double(), noise.tolist()):
        assert torch.equal(fg.sample(model, labels, noise=given, **run), want)
    one = fg.sample(model, "Blue", **run)
    assert torch.equal(one, fg.sample(model, numpy.int64(2), seeds=torch.tensor([0]), **run))
    mixed = fg.sample(model, [None, "blue"], seeds=0, steps=2)
    torch.testing.assert_close(mixed[:1], fg.sample(model, None, seeds=[0], steps=2))
    led = fg.sample(model, labels, negative="green", **run)
    assert torch.equal(led, fg.sample(model, labels, negative=[1, 1, 1], **run))


def test_dtypes_devices_and_predictions_by_name(model):
    want = fg.sample(model, [0], steps=2, dtype=torch.bfloat16)
    for name in ("bf16", "BFloat16", "torch.bfloat16"):
        assert torch.equal(fg.sample(model, [0], steps=2, dtype=name, device="CPU"), want)
    named = fg.Model(model.net, model.process, model.prediction.name, model.shape, model.null)
    assert named.prediction == model.prediction
    half = fg.Model(dit(), model.process, model.prediction, model.shape, model.null)
    assert half.to("cpu", "fp16") is half
    assert half.parameter.dtype == torch.float16


def test_a_sampler_is_closed_at_the_end_of_with(model):
    with fg.Sampler(model, steps=1) as sampler:
        future = sampler.submit(0, seed=3)
    assert future.done()
    with pytest.raises(RuntimeError, match="closed"):
        sampler.submit(0)


def test_solvers_show_their_own_help():
    import inspect
    import pydoc

    text = pydoc.plain(pydoc.render_doc(fg.ddim))
    assert inspect.getdoc(fg.ddim.function).splitlines()[0] in text
    assert "eta" in inspect.signature(fg.ddim).parameters
    assert inspect.signature(fg.ddim(eta=0.5)).parameters["eta"].default == 0.5
    assert "Example" in pydoc.plain(pydoc.render_doc(fg.sample))
