"""States and averages of another run, or damaged, and runs that go on with other data."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import random_images, run

import fastguide as fg
from fastguide.nets import DiT
from fastguide.training import Images, Recipe, TrainConfig, train
from fastguide.training.posthoc import PowerAverages, kept_averages, reconstruct

SMALL = {"width": 24, "depth": 1, "attention_heads": 2, "patch": 2}


def go(out, images, stop=None):
    def report(step, loss):
        if step == stop:
            raise KeyboardInterrupt

    config = TrainConfig(steps=3, batch=16, save_every=1, recipe=Recipe(dropout=0.1))
    torch.manual_seed(0)
    flow = (fg.Flow(), fg.Prediction("flow"))
    train(DiT(**SMALL, classes=3), images, *flow, config, out, report)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    images = random_images()
    with pytest.raises(KeyboardInterrupt):
        go(out, images, stop=2)
    return out, images


@pytest.mark.parametrize("part", ["pixels", "labels", "names"])
def test_a_run_does_not_go_on_with_other_data(stopped, part):
    out, images = stopped
    pixels, labels, names = images.pixels, images.labels, images.class_names
    other = {
        "pixels": Images(pixels.flip(0), labels, names),
        "labels": Images(pixels, labels.flip(0), names),
        "names": Images(pixels, labels, tuple(reversed(names))),
    }[part]
    with pytest.raises(ValueError, match=r"other settings \(images\.sha256"):
        go(out, other)


def change(path, tensors=None, metadata=None):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    content = load_file(path)
    if tensors is not None:
        tensors(content)
    save_file(content, path, {**about, **(metadata or {})})


NAME = "weights.out.bias"
DAMAGE = [
    (lambda t: t.update({NAME: t[NAME] + 1}), {}, "its SHA-256 is not the one it states"),
    (None, {"step": "2"}, "its SHA-256 is not the one it states"),
    (lambda t: t.pop(NAME), {}, "it lacks 'weights.out.bias'"),
    (lambda t: t.update(odd=torch.ones(1)), {}, "it has 'odd'"),
    (lambda t: t.update({NAME: torch.ones(1)}), {}, r"weights\.out\.bias has shape \[1\]"),
]


@pytest.mark.parametrize(("tensors", "metadata", "message"), DAMAGE)
def test_a_damaged_state_is_named(stopped, tensors, metadata, message):
    out, images = stopped
    path = out / "state.safetensors"
    whole = path.read_bytes()
    try:
        change(path, tensors, metadata)
        with pytest.raises(ValueError, match=message):
            go(out, images)
    finally:
        path.write_bytes(whole)


def test_a_state_that_is_no_file_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="is not a regular file"):
        go(tmp_path, random_images())


def averages(out):
    weights = {"a": torch.ones(4), "b": torch.ones(2)}
    powers = PowerAverages((0.05, 0.1), weights)
    powers.update(1, weights)
    powers.save(out, 1)
    return sorted((out / "averages").glob("*.safetensors"))[0]


AVERAGES = [
    (lambda t: t.pop("a"), {}, "lacks 'a'"),
    (lambda t: t.update(c=torch.ones(1)), {}, "has 'c'"),
    (lambda t: t.update(a=torch.ones(1)), {}, r"a has shape \[1\], but \[4\]|\[4\], but \[1\]"),
    (lambda t: t.update(a=torch.ones(4).half()), {}, "a is torch.float16"),
    (lambda t: t.update(a=torch.full((4,), float("nan"))), {}, "a has values that are not finite"),
    (None, {"length": "nan"}, "length is nan"),
    (None, {"length": "0.4"}, "length is 0.4"),
    (None, {"step": "-3"}, "step is -3"),
]


@pytest.mark.parametrize(("tensors", "metadata", "message"), AVERAGES)
def test_averages_that_do_not_belong_together_are_refused(tmp_path, tensors, metadata, message):
    change(averages(tmp_path), tensors, metadata)
    if tensors is not None and "lacks" in message:  # either may be the first that is read
        message = "lacks 'a'|has 'a'"
    elif "has 'c'" in message:
        message = "has 'c'|lacks 'c'"
    with pytest.raises(ValueError, match=message):
        reconstruct(kept_averages(tmp_path), 0.07)


def test_averages_of_another_network_are_not_written(tmp_path):
    from fastguide.cli.ema import ema

    run(tmp_path / "run", lengths=(0.05, 0.1), keep_every=12)
    for path in (tmp_path / "run" / "averages").iterdir():
        change(path, lambda t: t.update({"out.bias": t["out.bias"][:-1].clone()}))
    with pytest.raises(ValueError, match=r"weights\['out\.bias'\]\.shape"):
        ema(tmp_path / "run", tmp_path / "out", 0.07, None, "fp32")
    for path in (tmp_path / "run" / "averages").iterdir():
        change(path, lambda t: t.pop("out.bias"))
    with pytest.raises(ValueError, match=r"lacks 'out\.bias'"):
        ema(tmp_path / "run", tmp_path / "out", 0.07, None, "fp32")
    assert not (tmp_path / "out").exists()
