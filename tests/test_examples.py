"""What examples/ and the README show, run as written."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastguide as fg

ROOT = Path(__file__).parents[1]


def run(name, monkeypatch, *arguments):
    """examples/`name`.py as the command line runs it."""
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("own_network", ["--steps", 3, "--samples", 12]),
        ("inversion", ["--images", 2, "--steps", 3]),
        ("pipeline", ["--steps", 2]),
    ],
)
def test_examples_draw(name, options, monkeypatch, tmp_path):
    if name == "own_network":
        pytest.importorskip("matplotlib")
    if name == "pipeline":
        pytest.importorskip("diffusers")
    run(name, monkeypatch, "--out", tmp_path / "out.png", *options)
    with Image.open(tmp_path / "out.png") as image:
        assert len(image.getcolors(1 << 24)) > 16  # no plain sheet


def test_the_training_example(monkeypatch, tmp_path):
    for name in ("bright", "dark"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(64):
            shade = number + (200 if name == "bright" else 0)
            picture = Image.new("L", (8, 8), min(shade, 255))
            picture.save(tmp_path / "data" / name / f"{number}.png")
    run("training", monkeypatch, tmp_path / "data", tmp_path / "out", "--steps", 2, "--width", 16)
    assert fg.load(tmp_path / "out").negative
    assert (tmp_path / "out/samples.png").exists()


def test_the_first_ten_minutes(tmp_path):
    """In order, each with what those before it made; but for fewer steps."""
    text = (ROOT / "docs/start.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict = {"path": tmp_path / "grid.png"}
    for block in blocks:
        exec(re.sub(r"steps=\d+", "steps=2", block), names)
    assert len(blocks) == 5
    assert names["images"].shape == (4, 1, 28, 28)
    assert names["path"].exists()


def test_the_blocks_of_the_readme():
    """The first as it stands, but for the number of images and steps; the others beside it."""
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 3
    few = re.sub(r"(?<=range\()60(?=\))", "2", blocks[0])
    few = re.sub(r"steps=\d+", "steps=2", few)
    names: dict = {}
    exec(few, names)
    assert names["pixels"].shape == (2, 1, 28, 28)
    net = lambda x, t, cond: x * cond["text"].mean((1, 2)).view(-1, 1, 1, 1)  # noqa: E731
    names |= {"net": net, "empty_embedding": torch.zeros(7, 5), "seeds": range(3)}
    exec(blocks[1], names | {"embeddings": torch.randn(3, 7, 5)})
    assert "fg.guide(pipe" in blocks[2]  # the adapters' tests have pipelines
