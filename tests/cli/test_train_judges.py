"""The commands that train judges of noisy images: what their options make."""

import pytest
from test_training import write_idx
from typer.testing import CliRunner

import fastguide as fg
from fastguide.cli.app import app

SMALL = ["--steps", 2, "--batch", 16, "--width", 8, "--head-channels", 8, "--multipliers", "1,2"]
SMALL += ["--attention", "2", "--names", "a,b,c"]


def run(command, folder, *options):
    """The command on a small data set in the folder; what it raised."""
    write_idx(folder, count=40)
    arguments = [command, folder, folder / "out", *SMALL, *options]
    return CliRunner().invoke(app, [str(one) for one in arguments]).exception


def test_classifier(tmp_path):
    assert run("classifier", tmp_path, "--prediction", "eps", "--snapshot", 1) is None
    judge = fg.load_classifier(tmp_path / "out")
    assert judge.class_names == ("a", "b", "c")
    assert (judge.prediction.name, judge.process) == ("eps", fg.VP("cosine"))
    assert tuple(judge.net.config["multipliers"]) == (1, 2)
    assert fg.load_classifier(tmp_path / "out" / "snapshot-1").net.outputs == 3


def test_clip(tmp_path):
    assert run("clip", tmp_path, "--dimensions", 12, "--text-width", 16) is None
    judge = fg.load_text_image(tmp_path / "out")
    assert judge.net.config["outputs"] == 12
    assert judge.net.config["text_width"] == 16


@pytest.mark.parametrize("command", ["classifier", "clip"])
def test_noise_of_a_model_comes_without_options_for_it(command, tmp_path):
    error = run(command, tmp_path, "--like", "fashion", "--betas", "linear")
    assert "betas is given beside like, 'fashion'" in str(error)
