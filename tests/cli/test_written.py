"""What `fastguide sample` writes: formats, folders that go on, interruptions, and options that do
not go together.
"""

import json

import numpy as np
import pytest
import torch
from command import fastguide
from PIL import Image

import fastguide as fg
from fastguide.cli.running import Run
from fastguide.nets import DiT

NAMES = ("Red", "Green", "Blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    net = DiT(width=24, depth=1, attention_heads=2, classes=3)
    folder = tmp_path_factory.mktemp("model")
    fg.save(folder, fg.Model(net, fg.Flow(), "flow", (1, 8, 8), 3, class_names=NAMES))
    return folder


def sample(model, out, *options):
    plain = ("--steps", 2, "--guidance", "cfg:2", "--quiet")
    return fastguide("sample", model, "--out", out, *plain, *options)


def names(folder):
    return sorted(one.name for one in folder.iterdir())


def test_a_folder_goes_on_and_holds_images_of_one_kind(model, tmp_path):
    out = tmp_path / "many"
    done = sample(model, out, "--seeds", "3-6", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["images"], told["made"], told["guidance"]) == (4, 4, "cfg:2")
    assert names(out) == [*(f"00000{i}.png" for i in (3, 4, 5, 6)), "samples.json"]
    before = (out / "000004.png").read_bytes()
    (out / "000004.png").unlink()
    other = (out / "000005.png").stat().st_mtime_ns
    told = json.loads(sample(model, out, "--seeds", "3-6", "--json").stdout)
    assert told["made"] == 1
    assert (out / "000004.png").read_bytes() == before
    assert (out / "000005.png").stat().st_mtime_ns == other
    done = sample(model, out, "--seeds", "3-6", "--solver", "heun")
    assert done.returncode == 2
    assert "has images of other settings (solver 'ddim')" in done.stderr
    (out / "samples.json").unlink()
    assert "no samples.json that says how they were made" in sample(model, out).stderr


def test_ctrl_c_keeps_what_was_written(model, tmp_path, monkeypatch):
    whole = Run.__call__

    def interrupted(self, todo, folder):
        whole(self, todo[:2], folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "__call__", interrupted)
    done = sample(model, tmp_path / "many", "--seeds", "0-3")
    assert done.returncode == 130
    assert "interrupted; what was made lies in" in done.stderr
    assert names(tmp_path / "many") == ["000000.png", "000001.png", "samples.json"]
    done = sample(model, tmp_path / "a.png", "--seeds", "0-3")
    assert (done.returncode, names(tmp_path)) == (130, ["many"])
    assert "interrupted; nothing was written" in done.stderr


def test_formats(model, tmp_path):
    assert sample(model, tmp_path / "a.npz", "--seeds", "1-2", "--classes", "RED").returncode == 0
    with np.load(tmp_path / "a.npz") as found:
        assert found["arr_0"].shape == (2, 8, 8, 1)
        assert found["labels"].tolist() == [0, 0]
        want = fg.sample(fg.load(model), "red", fg.CFG(2.0), fg.ddim, 2, seeds=[1, 2])
        pixels = ((want + 1) * 127.5).round().clamp(0, 255).movedim(1, -1)
        assert np.array_equal(found["arr_0"], pixels.numpy())
    for ending, kind in (("webp", "WEBP"), ("JPG", "JPEG")):
        assert sample(model, tmp_path / f"a.{ending}", "--seeds", "1").returncode == 0
        with Image.open(tmp_path / f"a.{ending}") as image:
            assert image.format == kind
    assert sample(model, tmp_path / "f", "--seeds", "1", "--files", "webp").returncode == 0
    assert names(tmp_path / "f") == ["000001.webp", "samples.json"]


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("a.gif", [], "out is"),
        ("many", ["--zoom", 2], "zoom is 2, but out is a folder, which has none"),
        ("a.npz", ["--columns", 2], "columns is 2, but out is a .npz file, which has none"),
        ("a.png", ["--files", "png"], "files is 'png', but out is a .png file"),
        ("a.png", ["--scale", 2], "scale is given, but 'cfg:2' has nothing that it would be of"),
        ("a.png", ["--clamp", "x"], "clamp is 'x', but it should be as 1, -1:1 or dynamic:0.995"),
        ("a.png", ["--batch", 0], "batch is 0"),
        ("a.png", ["--classes", "gren"], "did you mean 'Green'?"),
        ("a.png", ["--device", "gpu"], "an NVIDIA GPU is 'cuda'"),
        ("a.png", ["--dtype", "int8"], "dtype is 'int8'"),
    ],
)
def test_options_that_cannot_be(model, tmp_path, out, options, message):
    done = sample(model, tmp_path / out, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / out).is_file()
