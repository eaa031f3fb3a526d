"""The command line, run as a user runs it."""

import json

import numpy as np
import pytest
import torch
from command import fastguide
from PIL import Image
from test_training import write_idx

import fastguide as fg
from fastguide.cli.guidance import parse_guidance
from fastguide.cli.sample import parse_classes, parse_seeds
from fastguide.nets import DiT, UNet
from fastguide.staging.contract import choose_layers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    net = DiT(width=24, depth=1, attention_heads=2, classes=3, heads=2, negative=True)
    folder = tmp_path_factory.mktemp("model")
    names = ("Red", "Green", "Blue")
    fg.save(folder, fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 8, 8), 3, 2, True, names))
    return folder


def test_sample_makes_a_grid(model, tmp_path):
    out = tmp_path / "grid.png"
    done = fastguide("sample", model, "--out", out, "--seeds", "0-6", "--steps", 2, "--batch", 4)
    assert done.returncode == 0, done.stderr
    assert "7 images, 2 steps of ddim, 2 network rows each" in done.stdout
    with Image.open(out) as image:
        assert image.size == (3 * (24 + 2) + 2, 3 * (24 + 14 + 2) + 2)  # a column per class


def test_sample_makes_one_file_per_seed(model, tmp_path):
    options = [
        "--guidance",
        "cfg",
        "--schedule",
        "interval:0.3,3",
        "--solver",
        "heun",
        "--steps",
        3,
    ]
    options += ["--classes", "blue,0", "--negative", "green", "--seeds", "3,9"]
    done = fastguide("sample", model, "--out", tmp_path / "many", *options)
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in (tmp_path / "many").iterdir())
    assert names == ["000003.png", "000009.png", "samples.json"]
    loaded = fg.load(model)
    guidance = fg.CFG(3.0, fg.interval(0.3, 3.0))
    x = fg.sample(loaded, [2, 0], guidance, fg.heun, 3, [3, 9], negative=[1, 1])
    pixels = ((x[1, 0] + 1) * 127.5).round().clamp(0, 255)
    with Image.open(tmp_path / "many" / "000009.png") as image:
        assert np.array_equal(np.asarray(image), pixels.numpy())


def test_train_then_sample(tmp_path):
    write_idx(tmp_path, count=40)
    options = ["--steps", 3, "--batch", 16, "--width", 24, "--depth", 1, "--patch", 2]
    options += ["--attention-heads", 2, "--names", "a,b,c"]
    done = fastguide("train", tmp_path, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout
    assert "steps/s" in done.stdout
    done = fastguide("sample", tmp_path / "out", "--out", tmp_path / "x.png", "--seeds", "0-2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").exists()
    assert fg.load(tmp_path / "out").net.split


@pytest.mark.parametrize(
    ("options", "heads"),
    [(["--no-split"], 2), (["--no-split", "--irrelevant", 0], 1), (["--unconditional"], 1)],
)
def test_train_other_networks(tmp_path, options, heads):
    write_idx(tmp_path, count=40)
    small = ["--steps", 1, "--batch", 16, "--width", 24, "--depth", 1, "--patch", 2]
    small += ["--attention-heads", 2]
    done = fastguide("train", tmp_path, tmp_path / "out", *small, *options)
    assert done.returncode == 0, done.stderr
    model = fg.load(tmp_path / "out")
    assert (model.heads, model.net.split) == (heads, False)
    assert (model.null is None) == ("--unconditional" in options)


def test_train_a_unet_then_sample_with_its_variance(tmp_path):
    write_idx(tmp_path, count=40)
    options = ["--net", "unet", "--width", 32, "--multipliers", "1,2", "--res-blocks", 1]
    options += ["--attention", "2", "--head-channels", 16, "--variance", "--prediction", "eps"]
    done = fastguide("train", tmp_path, tmp_path / "out", "--steps", 2, "--batch", 16, *options)
    assert done.returncode == 0, done.stderr
    model = fg.load(tmp_path / "out")
    assert isinstance(model.net, UNet)
    assert (model.variance, model.heads, model.null) == (True, 1, 3)
    wanted = {"width": 32, "multipliers": (1, 2), "res_blocks": 1, "attention": (2,)}
    assert wanted.items() <= model.net.config.items()
    options = ["--solver", "ddpm:variance=learned", "--steps", 3, "--seeds", "0-2"]
    done = fastguide("sample", tmp_path / "out", "--out", tmp_path / "x.png", *options)
    assert done.returncode == 0, done.stderr
    assert "6 network rows each" in done.stdout  # CFG: two at each step
    assert (tmp_path / "x.png").exists()


def test_an_unconditional_unet(tmp_path):
    write_idx(tmp_path, count=40)
    options = ["--net", "unet", "--width", 32, "--multipliers", "1", "--attention", ""]
    options += ["--head-channels", 32, "--unconditional", "--steps", 1, "--batch", 16]
    done = fastguide("train", tmp_path, tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    model = fg.load(tmp_path / "out")
    assert choose_layers(("all",), model.net) == ("middle",)
    assert (model.null, model.net.config["attention"]) == (None, ())
    record = json.loads((tmp_path / "out" / "model.json").read_text())["training"]
    assert record["recipe"] == {"irrelevant": 0.0, "negative": 0.0, "dropout": 0.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--net", "vae"], "net is 'vae', but it should be one of dit, unet"),
        (["--net", "unet", "--depth", 6], "depth is an option of net 'dit', but net is 'unet'"),
        (["--net", "unet", "--no-split"], "split is an option of net 'dit', but net is 'unet'"),
        (["--res-blocks", 2], "res-blocks is an option of net 'unet', but net is 'dit'"),
        (["--net", "unet", "--multipliers", "1,x"], "multipliers is '1,x'"),
        (["--net", "unet", "--width", 0], "width is 0"),
        (["--width", 0], "width is 0"),
        (["--net", "unet", "--multipliers", "1,1,1,1", "--attention", "8"], "multiples of 8"),
        (
            ["--net", "unet", "--multipliers", "1,2", "--attention", "2", "--variance"],
            "net predicts a variance, which needs VP and eps, x0 or v",
        ),
    ],
)
def test_wrong_options_of_a_network_are_one_line(tmp_path, options, message):
    write_idx(tmp_path, count=40)
    done = fastguide("train", tmp_path, tmp_path / "out", "--steps", 1, "--batch", 16, *options)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "Purple"], "classes has 'Purple', but the classes are Red, Green, Blue"),
        (["--solver", "eulr"], "solver is 'eulr', but it should be one of annealed_langevin"),
        (["--steps", "0"], "steps is 0"),
        (["--seeds", "5-3"], "seeds is '5-3'"),
        (["--schedule", "interval:1"], "schedule is 'interval:1'"),
        (["--guidance", "cgf"], "guidance has 'cgf'"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--scale", "nan"], "scale is nan"),
        (["--negative", "Red,Blue"], "negative is 'Red,Blue'"),
    ],
)
def test_a_wrong_argument_is_one_line(model, tmp_path, arguments, message):
    done = fastguide("sample", model, "--out", tmp_path / "no.png", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "no.png").exists()


def test_info_says_what_is_there_and_what_is_missing():
    done = fastguide("info")
    assert done.returncode == 0, done.stderr
    assert fg.__version__ in done.stdout
    assert torch.__version__ in done.stdout
    if torch.version.cuda is None:
        assert "missing: GPU support" in done.stdout


def test_parsers(model):
    assert parse_seeds("0-3, 7") == [0, 1, 2, 3, 7]
    loaded = fg.load(model)
    assert parse_classes("classes", "green, 2", loaded) == [1, 2]
    assert parse_classes("classes", "all", loaded) == [0, 1, 2]
    assert parse_classes("classes", "none", loaded) == []


def test_guidance_of_the_command_line(model):
    loaded = fg.load(model)
    both = parse_guidance(
        f"cfg + pag:1@0 + autoguidance:2,weak={model}", loaded, 4.0, "interval:1:2"
    )
    assert str(both) == (
        "cfg:4,schedule=interval:1:2 + pag:1@0,schedule=interval:1:2 + "
        f"autoguidance:2,weak={model},schedule=interval:1:2"
    )
    assert str(parse_guidance("auto", loaded)) == "superconditioning:3"
    assert str(parse_guidance("Auto", loaded, 2.0)) == "superconditioning:2"
    assert parse_guidance("none", loaded) is None
    with pytest.raises(
        ValueError, match="scale is given, but 'cfg:2' has nothing that it would be"
    ):
        parse_guidance("cfg:2", loaded, 3.0)
    with pytest.raises(ValueError, match="schedule is given, but 'none'"):
        parse_guidance("none", loaded, None, "cosine")


def test_info_of_a_model_lists_its_layers(model):
    done = fastguide("info", model)
    assert done.returncode == 0, done.stderr
    assert "blocks.0" in done.stdout
    assert "time, blocks.0" in done.stdout
    assert "Red, Green, Blue" in done.stdout
