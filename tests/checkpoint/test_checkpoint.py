"""Models on disk: round trips, and every way in which a file can be wrong."""

import json
import os

import pytest
import torch

import fastguide as fg
from fastguide.checkpoint import models as checkpoint
from fastguide.nets import DiT


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    net = DiT(width=24, depth=1, attention_heads=2, classes=3, heads=2, negative=True)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    model = fg.Model(
        net, fg.VP("cosine"), fg.Prediction("v"), (1, 8, 8), 3, 2, True, ("x", "y", "z")
    )
    fg.save(tmp_path / "m", model, training={"steps": 5})
    return tmp_path / "m", model


def test_round_trip(saved):
    folder, model = saved
    loaded = fg.load(folder)
    for name in ("process", "prediction", "shape", "null", "heads", "negative", "class_names"):
        assert getattr(loaded, name) == getattr(model, name)
    for name, value in model.net.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], value)
    assert not loaded.net.training
    assert not any(p.requires_grad for p in loaded.net.parameters())
    half = fg.load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.net.parameters()} == {torch.bfloat16}


def test_nothing_but_the_two_files_is_left(saved):
    folder, model = saved
    fg.save(folder, model)
    assert sorted(os.listdir(folder)) == ["model.json", "model.safetensors"]


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    folder, model = saved
    before = (folder / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        fg.save(folder, model)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(folder)) == ["model.json", "model.safetensors"]


def edit(folder, change):
    path = folder / "model.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


DAMAGE = [
    (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
    (lambda f: (f / "model.json").unlink(), "holds no model.json"),
    (lambda f: (f / "model.json").write_text("{"), "model.json is damaged"),
    (lambda f: (f / "model.json").write_bytes(b"\x80\x04\x95"), "model.json is damaged"),
    (lambda f: (f / "model.json").write_text("[1]"), "has format None"),
    (
        lambda f: edit(f, lambda d: d.update(format=2)),
        "has format 2, but this version reads format 1",
    ),
    (lambda f: edit(f, lambda d: d.pop("process")), "lacks process"),
    (lambda f: edit(f, lambda d: d["net"].update(name="UNet9")), "net is 'UNet9'"),
    (lambda f: edit(f, lambda d: d["net"].update(width=-4)), "does not describe a model"),
    (lambda f: edit(f, lambda d: d["net"].update(depth=2)), "weights do not fit the network"),
    (lambda f: edit(f, lambda d: d["process"].update(betas="odd")), "does not describe a model"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named(saved, damage, message):
    folder, _ = saved
    damage(folder)
    with pytest.raises(fg.CheckpointError, match=message):
        fg.load(folder)


def test_truncated_and_flipped_weights(saved):
    folder, _ = saved
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(fg.CheckpointError, match="is truncated or of another run"):
        fg.load(folder)
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(fg.CheckpointError, match="is damaged: its SHA-256"):
        fg.load(folder)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pkl"])
def test_pickles_are_refused_unread(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(fg.CheckpointError, match="looks like a pickle"):
        fg.load(path)


def test_unknown_names_list_the_bundled_models(tmp_path):
    with pytest.raises(fg.CheckpointError, match="neither a folder nor a bundled model"):
        fg.load("fashoin")
    with pytest.raises(fg.CheckpointError, match="is not a folder"):
        fg.load(__file__)


def test_only_our_own_networks_are_saved(tmp_path):
    model = fg.Model(torch.nn.Identity(), fg.Flow(), fg.Prediction("flow"), (1, 2, 2))
    with pytest.raises(TypeError, match="net is a Identity, but only DiT"):
        checkpoint.save(tmp_path / "x", model)
    assert not (tmp_path / "x").exists()
