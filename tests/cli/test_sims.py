"""The auxiliary model of SIMS: its samples, its training."""

import pytest
import torch
from command import fastguide

import fastguide as fg
from fastguide.cli.sims import own_samples
from fastguide.common.images import to_uint8
from fastguide.nets import DiT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    net = DiT(width=24, depth=1, attention_heads=2, classes=3, heads=2, negative=True)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    path = tmp_path_factory.mktemp("model")
    names = ("Red", "Green", "Blue")
    fg.save(path, fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 8, 8), 3, 2, True, names))
    return path


def test_samples_are_the_models_own_and_kept_by_seed(folder, tmp_path):
    model = fg.load(folder)
    seen = []
    images = own_samples(model, tmp_path, 520, 2, 7, seen.append)
    assert seen == [500, 520]
    assert images.labels[:4].tolist() == [0, 1, 2, 0]
    want = fg.sample(model, images.labels[500:503], steps=2, seeds=range(507, 510))
    assert torch.equal(images.pixels[500:503], to_uint8(want))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    stamp = files[0].stat().st_mtime_ns
    files[1].unlink()  # interrupted: the other is not made again
    again = own_samples(model, tmp_path, 520, 2, 7)
    assert torch.equal(again.pixels, images.pixels)
    assert files[0].stat().st_mtime_ns == stamp


def test_the_copy_is_tuned_from_the_models_weights(folder, tmp_path):
    options = ["--samples", 32, "--sample-steps", 2, "--steps", 2, "--batch", 16, "--rate", 1e-5]
    done = fastguide("sims", folder, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    model, copy = fg.load(folder), fg.load(tmp_path / "out")
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(model.net.parameters(), copy.net.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 1e-3  # two small steps away, not drawn anew
    labels = torch.arange(3)
    plain = fg.sample(model, labels, steps=3, seeds=range(3))
    led = fg.sample(model, labels, fg.SIMS(copy, 2.0), steps=3, seeds=range(3))
    assert (led - plain).abs().max() > 0
    done = fastguide("sims", folder, tmp_path / "few", "--samples", 8)
    assert done.returncode == 2
    assert "samples is 8, but it should be at least batch, 128" in done.stderr
