"""Training: data files, the batches of superconditioning, exact resumption, what it learns."""

import gzip
import json

import numpy as np
import pytest
import torch
from PIL import Image

import fastguide as fg
from fastguide.nets import DiT, GaussianMixture, UNet
from fastguide.training import Images, Recipe, TrainConfig, load_images, train
from fastguide.training.loop import batch_indices
from fastguide.training.objective import cosine_rate, noised
from fastguide.training.recipe import assign

SMALL = {"width": 24, "depth": 1, "attention_heads": 2, "patch": 2}
SMALL_UNET = {
    "width": 16,
    "multipliers": (1, 2),
    "res_blocks": 1,
    "attention": (2,),
    "head_channels": 16,
    "groups": 4,
}


def idx(array):
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(s.to_bytes(4, "big") for s in array.shape) + array.tobytes()


def write_idx(folder, count=40, compress=True, classes=3):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 4, 6), dtype=np.uint8)
    labels = (np.arange(count) % classes).astype(np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        data = idx(array)
        path = folder / f"train-{name}-ubyte{'.gz' if compress else ''}"
        path.write_bytes(gzip.compress(data) if compress else data)
    return pixels, labels


def random_images(count=64, classes=3):
    pixels = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % classes, tuple("abc"[:classes]))


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files(tmp_path, compress):
    pixels, labels = write_idx(tmp_path, compress=compress)
    images = load_images(tmp_path, names=("x", "y", "z"))
    assert torch.equal(images.pixels[:, 0], torch.from_numpy(pixels))
    assert images.labels.tolist() == labels.tolist()
    assert images.class_names == ("x", "y", "z")
    assert load_images(tmp_path).class_names == ("0", "1", "2")


def test_image_folders(tmp_path):
    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (5, 4), (value, i, 0)).save(tmp_path / name / f"{i}.png")
    images = load_images(tmp_path)
    assert images.pixels.shape == (6, 3, 4, 5)
    assert images.pixels[4, :, 0, 0].tolist() == [200, 1, 0]
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.class_names == ("cat", "dog")
    Image.new("RGB", (6, 4)).save(tmp_path / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"9.png is \(3, 4, 6\)"):
        load_images(tmp_path)


def test_damaged_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_images(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="neither train-images-idx3-ubyte"):
        load_images(tmp_path)
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="is damaged"):
        load_images(tmp_path)
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(ValueError, match="is damaged"):
        load_images(tmp_path)
    path.write_bytes(gzip.compress(b"P5 not idx"))
    with pytest.raises(ValueError, match="is not an IDX file"):
        load_images(tmp_path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="names has 1 entries"):
        load_images(tmp_path, names=("x",))


def test_groups_of_a_batch():
    labels = torch.randint(0, 10, (100,))
    rows = assign(labels, 10, Recipe(0.1, 0.1, 0.1), two_conditions=True)
    first, second = rows.head_weights
    rolled = labels.roll(1)
    assert torch.equal(rows.cond[:20], rolled[:20])  # irrelevant, then negative
    assert (rows.negative[:10] == 10).all()
    assert torch.equal(rows.negative[10:20], labels[10:20])
    assert (rows.cond[20:30] == 10).all()  # dropout
    assert (rows.negative[20:30] == 10).all()
    assert torch.equal(rows.cond[30:], labels[30:])
    assert (rows.negative[30:65] == 10).all()
    assert (rows.negative[65:] != 10).all()
    # each head is supervised exactly where its other condition says nothing of the image
    assert first.tolist() == [0] * 20 + [1] * 80
    assert second.tolist() == [1] * 30 + [0] * 70


def test_a_split_network_learns_both_heads_from_ordinary_rows():
    labels = torch.randint(0, 10, (100,))
    rows = assign(labels, 10, Recipe(0.0, 0.2, 0.1), two_conditions=True, split=True)
    first, second = rows.head_weights
    assert first.tolist() == [0] * 20 + [1] * 80
    assert second.tolist() == [1] * 65 + [0] * 35
    assert torch.equal(rows.negative[:20], labels[:20])
    assert (rows.negative[20:65] == 10).all()
    assert (rows.negative[65:] != 10).all()
    one = assign(labels, 10, Recipe(dropout=0.1), two_conditions=False, split=True)
    assert [int(w.sum()) for w in one.head_weights] == [100, 100]


def test_no_head_goes_without_rows_in_a_small_batch():
    rows = assign(torch.arange(4), 10, Recipe(0.1, 0.0, 0.1), two_conditions=False)
    assert [int(w.sum()) for w in rows.head_weights] == [3, 2]
    with pytest.raises(ValueError, match="batch is 3"):
        assign(torch.arange(3), 10, Recipe(0.1, 0.1, 0.1), two_conditions=True)


def test_irrelevant_conditions_are_independent_of_the_label():
    """A rolled condition equals the true one as often as chance has it: no more and no less."""
    pairs = torch.zeros(5, 5)
    for step in range(400):
        index = batch_indices(1000, 50, 0, step)
        labels = index % 5
        rows = assign(labels, 5, Recipe(0.2, 0.0, 0.0), two_conditions=False)
        for a, b in zip(labels[:10].tolist(), rows.cond[:10].tolist(), strict=True):
            pairs[a, b] += 1
    expected = pairs.sum() / 25
    chi_square = ((pairs - expected) ** 2 / expected).sum()
    assert chi_square < 51.2  # 24 degrees of freedom, p = 0.001


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm"])
def test_the_target_is_what_an_exact_network_returns_on_average(process, name):
    """For data of one point the exact prediction equals the target itself."""
    prediction = fg.Prediction(name)
    point = torch.randn(1, 1, 2, 3)
    net = GaussianMixture(point.double(), [1e-9], [1.0], process, prediction)
    generator = torch.Generator().manual_seed(0)
    x, t, target = noised(point.expand(32, -1, -1, -1), process, prediction, generator)
    alpha_is_tiny = 30.0 if isinstance(process, fg.VP) and name in ("eps", "edm") else 1.0
    torch.testing.assert_close(net(x, t), target, rtol=1e-3, atol=2e-3 * alpha_is_tiny)


def test_every_epoch_visits_every_image_once():
    seen = torch.cat([batch_indices(60, 20, 7, step) for step in range(3)])
    assert sorted(seen.tolist()) == list(range(60))
    assert not torch.equal(batch_indices(60, 20, 7, 0), batch_indices(60, 20, 7, 3))


def test_rate_warms_up_and_falls_to_zero():
    rates = [cosine_rate(step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def run(out, stop=None, steps=12, kind="dit", **kwargs):
    if kind == "dit":
        net, recipe = DiT(**SMALL, classes=3, heads=2, negative=True), Recipe(0.1, 0.1, 0.1)
    else:
        net, recipe = UNet(**SMALL_UNET, classes=3), Recipe(dropout=0.1)
    config = TrainConfig(steps=steps, batch=16, warmup=3, save_every=5, recipe=recipe, **kwargs)

    def report(step, loss):
        if step == stop:
            raise KeyboardInterrupt

    torch.manual_seed(0)
    return train(net, random_images(), fg.Flow(), fg.Prediction("flow"), config, out, report)


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_an_interrupted_run_continues_to_the_same_numbers(tmp_path, kind):
    whole = run(tmp_path / "a", kind=kind).net.state_dict()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=8, kind=kind)
    assert not (tmp_path / "b" / "model.safetensors").exists()
    continued = run(tmp_path / "b", kind=kind).net.state_dict()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    with pytest.raises(ValueError, match="state of a run with other settings"):
        run(tmp_path / "b", steps=13, kind=kind)
    state = tmp_path / "b" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:50])
    with pytest.raises(ValueError, match="is damaged"):
        run(tmp_path / "b", kind=kind)


def test_snapshots_and_records(tmp_path):
    run(tmp_path, snapshots=(4,))
    early = fg.load(tmp_path / "snapshot-4")
    late = fg.load(tmp_path)
    assert any(
        (early.net.state_dict()[k] - v).abs().max() > 0 for k, v in late.net.state_dict().items()
    )
    record = json.loads((tmp_path / "model.json").read_text())["training"]
    assert record["steps"] == 12
    assert record["recipe"] == {"irrelevant": 0.1, "negative": 0.1, "dropout": 0.1}


# many CPUs only emulate the bf16 of autocast
LEARNS = {"batch": 64, "rate": 3e-3, "warmup": 20, "ema": 0.95, "autocast": False}


ALSO = [pytest.param(*one, marks=pytest.mark.full) for one in (("flow", False), ("edm", True))]


@pytest.mark.parametrize(("prediction", "split"), [("flow", True), ("eps", False), *ALSO])
def test_it_learns_classes_in_one_pass_and_in_two(tmp_path, prediction, split):
    """Two classes, black and white images: guidance in either form finds the requested one."""
    pixels = torch.cat([torch.full((64, 1, 4, 4), v, dtype=torch.uint8) for v in (40, 215)])
    images = Images(pixels, torch.arange(128) // 64, ("dark", "light"))
    net = DiT(
        width=48,
        depth=1,
        attention_heads=2,
        patch=2,
        classes=2,
        heads=2,
        split=split,
        time_scale={"flow": 1000.0, "edm": 250.0}.get(prediction, 1.0),
    )
    process = {"flow": fg.Flow(), "eps": fg.VP("linear"), "edm": fg.EDM()}[prediction]
    recipe = Recipe(dropout=0.15) if split else Recipe(0.15, 0.0, 0.15)
    steps = 500 if prediction == "flow" else 800
    config = TrainConfig(steps=steps, **LEARNS, recipe=recipe)
    model = train(net, images, process, fg.Prediction(prediction), config, tmp_path)
    labels = torch.arange(16) % 2
    # the range of noise that so short a training covers
    levels = fg.karras(sigma_max=3.0, sigma_min=0.1).run(process, 12)
    for guidance in (fg.CFG(1.5), fg.Superconditioning(1.5)):
        x = fg.sample(model, labels, guidance, levels=levels, seeds=range(16), clamp=1.0)
        brightness = x.mean((1, 2, 3))
        assert brightness[labels == 0].mean() < -0.4
        assert brightness[labels == 1].mean() > 0.4
        assert ((brightness > 0) == (labels == 1)).float().mean() > 0.9


def test_a_unet_learns_classes(tmp_path):
    pixels = torch.cat([torch.full((64, 1, 4, 4), v, dtype=torch.uint8) for v in (40, 215)])
    images = Images(pixels, torch.arange(128) // 64, ("dark", "light"))
    net, losses = UNet(**SMALL_UNET, classes=2), []
    recipe = Recipe(dropout=0.15)
    config = TrainConfig(steps=150, **LEARNS, recipe=recipe)
    flow = (fg.Flow(), fg.Prediction("flow"))
    model = train(net, images, *flow, config, tmp_path, lambda _, loss: losses.append(loss))
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    labels = torch.arange(16) % 2
    levels = fg.karras(sigma_max=3.0, sigma_min=0.1).run(fg.Flow(), 12)
    x = fg.sample(model, labels, fg.CFG(1.5), levels=levels, seeds=range(16), clamp=1.0)
    assert ((x.mean((1, 2, 3)) > 0) == (labels == 1)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"rate": -1.0}, "rate is -1.0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"snapshots": (99,)}, "snapshots has 99"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 10, **change})


def test_mismatches_are_found_before_the_first_step(tmp_path):
    images = random_images()

    def go(net, recipe=None, batch=16, data=images):
        config = TrainConfig(steps=1, batch=batch, recipe=recipe or Recipe())
        train(net, data, fg.Flow(), fg.Prediction("flow"), config, tmp_path)

    with pytest.raises(ValueError, match="net has 5 classes, but the data has 3"):
        go(DiT(**SMALL, classes=5))
    with pytest.raises(ValueError, match="batch is 65, but there are 64 images"):
        go(DiT(**SMALL, classes=3), batch=65)
    with pytest.raises(ValueError, match="second head, but net has heads=1"):
        go(DiT(**SMALL, classes=3), Recipe(irrelevant=0.1))
    with pytest.raises(ValueError, match="never supervises the second one"):
        go(DiT(**SMALL, classes=3, heads=2))
    with pytest.raises(ValueError, match=r"recipe\.negative is 0\.1, but net\.negative is False"):
        go(DiT(**SMALL, classes=3, heads=2), Recipe(0.1, 0.1))
    with pytest.raises(ValueError, match="multiples of the patch size 8"):
        go(DiT(**{**SMALL, "patch": 8}, classes=3))
    with pytest.raises(ValueError, match="multiples of 8, for 4 levels"):
        go(UNet(**{**SMALL_UNET, "multipliers": (1, 1, 1, 1)}, classes=3))
    with pytest.raises(ValueError, match="second head, but net has heads=1"):
        go(UNet(**SMALL_UNET, classes=3), Recipe(irrelevant=0.1))
    with pytest.raises(ValueError, match="should be below 1"):
        Recipe(0.5, 0.3, 0.3)
    assert not list(tmp_path.iterdir())
