"""Checkpoints of somebody who means harm, and saves that are interrupted."""

import json
import os
import struct

import pytest
import torch

import fastguide as fg
from fastguide.checkpoint import models as checkpoint
from fastguide.nets import DiT


def model_of(seed):
    torch.manual_seed(seed)
    net = DiT(width=24, depth=1, attention_heads=2, patch=2, classes=3)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    return fg.Model(
        net, fg.Flow(), fg.Prediction("flow"), (1, 8, 8), 3, class_names=("x", "y", "z")
    )


@pytest.fixture
def folder(tmp_path):
    fg.save(tmp_path / "m", model_of(0))
    return tmp_path / "m"


def edit(folder, change):
    path = folder / "model.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


CHANGES = [
    (lambda d: d["net"].update(width=10**400), "net.width is a huge number"),
    (lambda d: d["net"].update(width=24.0), "net.width is 24.0, but it should be a whole number"),
    (lambda d: d["net"].update(classes=True), "net.classes is True"),
    (lambda d: d["net"].update(depth=1_000_000), "net.depth is 1000000"),
    (lambda d: d["net"].update(depth=5000), "net has 5000 layers, but there are"),
    (lambda d: d["net"].update(time_scale="x"), "net.time_scale is 'x'"),
    (lambda d: d["net"].update(odd=1), "net has 'odd'"),
    (lambda d: d["process"].update(name="VP", timesteps=10**9), "process.timesteps is 1000000000"),
    (lambda d: d.update(shape=[3, 8, 8]), r"shape is \(3, 8, 8\)"),
    (lambda d: d.update(shape=[1, 8, 7]), r"shape is \(1, 8, 7\)"),
    (lambda d: d.update(shape="abc"), "shape is 'abc'"),
    (lambda d: d.update(class_names=["x"]), "class_names has 1 names for 3 classes"),
    (lambda d: d.update(class_names="xyz"), "class_names is 'xyz'"),
    (lambda d: d.update(class_names=["x", 2, "z"]), r"class_names\[1\] is 2"),
    (lambda d: d.update(class_names=["x", "\ud800", "z"]), r"class_names\[1\]"),
    (lambda d: d.update(weights=[]), "weights is a list"),
    (lambda d: d["weights"].update(bytes=-1), "weights.bytes is -1"),
    (lambda d: d.update(format=True), "has format True"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_description_is_checked_before_anything_is_built(folder, change, message):
    edit(folder, change)
    with pytest.raises(fg.CheckpointError, match=message):
        fg.load(folder)


@pytest.mark.parametrize(
    "raw", ["NaN", "-Infinity", "1e999", "[" * 100_000, "9" * 5000, '{"a": 1, "a": 2}']
)
def test_what_is_no_json_is_damage(folder, raw):
    path = folder / "model.json"
    path.write_text(path.read_text().replace('"training": {}', f'"training": {raw}'))
    with pytest.raises(fg.CheckpointError, match="is damaged"):
        fg.load(folder)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "loop", "device"])
def test_only_regular_files_are_read(folder, name, kind):
    path = folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "loop" else "/dev/zero")
    with pytest.raises(fg.CheckpointError, match=r"is not a regular file|cannot be read"):
        fg.load(folder)


def test_a_sparse_file_is_not_read(folder):
    path = folder / "model.safetensors"
    os.truncate(path, 1 << 40)
    edit(folder, lambda d: d["weights"].update(bytes=1 << 40))
    with pytest.raises(fg.CheckpointError, match="is sparse"):
        fg.load(folder)


def sign(folder, data):
    from hashlib import sha256

    (folder / "model.safetensors").write_bytes(data)
    about = {"sha256": sha256(data).hexdigest(), "bytes": len(data)}
    edit(folder, lambda d: d.update(weights=about))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, number):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-4:] = struct.pack("<f", number)
    sign(folder, bytes(data))
    with pytest.raises(fg.CheckpointError, match="has values that are not finite"):
        fg.load(folder)


def test_a_header_that_asks_for_other_shapes_is_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    sign(folder, data.replace(b'"shape":[24,4]', b'"shape":[4,24]'))
    with pytest.raises(
        fg.CheckpointError, match=r"has shape \[4, 24\], but it should be \[24, 4\]"
    ):
        fg.load(folder)
    sign(folder, data.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    with pytest.raises(fg.CheckpointError, match="is of dtype 'I32'"):
        fg.load(folder)


def test_saving_refuses_weights_of_another_network(tmp_path):
    model = model_of(0)
    weights = model.net.state_dict()
    with pytest.raises(ValueError, match=r"lacks 'out\.bias'"):
        checkpoint.save(tmp_path, model, {k: v for k, v in weights.items() if k != "out.bias"})
    with pytest.raises(ValueError, match=r"weights\['out.bias'\].shape is \(1,\)"):
        checkpoint.save(tmp_path, model, {**weights, "out.bias": torch.zeros(1)})
    huge = {**weights, "out.bias": torch.full_like(weights["out.bias"], 1e6)}
    with pytest.raises(ValueError, match=r"out\.bias has values that are not finite"):
        checkpoint.save(tmp_path, model, huge, torch.float16)
    assert not list(tmp_path.iterdir())


def weights_of(folder):
    return fg.load(folder).net.state_dict()["out.bias"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(1, 4))
def test_a_save_that_is_killed_leaves_a_whole_model(folder, step, monkeypatch):
    """Killed right before or after each of its renames: the old model or the new one."""
    old, new = model_of(0), model_of(1)
    for after in (False, True):
        fg.save(folder, old)
        seen, real = 0, os.replace

        def replace(source, target, after=after, real=real):
            nonlocal seen
            seen += 1
            if seen < step:
                return real(source, target)
            if after and seen == step:
                real(source, target)
            monkeypatch.setattr(os, "unlink", lambda *_, **__: None)  # nothing is tidied up
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(Killed):
                fg.save(folder, new)
        monkeypatch.undo()
        committed = step > 2 or (step == 2 and after)
        want = (new if committed else old).net.state_dict()["out.bias"]
        assert torch.equal(weights_of(folder), want), (step, after)
        fg.save(folder, new)
        assert torch.equal(weights_of(folder), new.net.state_dict()["out.bias"])
        assert sorted(os.listdir(folder)) == ["model.json", "model.safetensors"]


def test_a_model_that_is_replaced_while_it_is_read(folder, monkeypatch):
    new = model_of(1)
    real = checkpoint.read_description
    calls = 0

    def meanwhile(*arguments):
        nonlocal calls
        calls += 1
        found = real(*arguments)
        if calls == 1:
            fg.save(folder, new)
        return found

    monkeypatch.setattr(checkpoint, "read_description", meanwhile)
    assert torch.equal(weights_of(folder), new.net.state_dict()["out.bias"])


def test_loading_does_not_disturb_the_random_numbers(folder):
    torch.manual_seed(7)
    want = torch.rand(3)
    torch.manual_seed(7)
    fg.load(folder)
    assert torch.equal(torch.rand(3), want)
