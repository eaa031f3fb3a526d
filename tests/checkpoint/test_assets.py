"""The bundled model and the README: what a new user sees first must be true."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fastguide as fg
from fastguide.assets import bundled
from fastguide.cli.sample import sample as sample_command

ROOT = Path(__file__).parents[2]


def test_the_bundled_model_is_small_and_complete():
    assert bundled() == ["fashion"]
    folder = Path(fg.__file__).parent / "assets" / "fashion"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10_000_000
    model = fg.load("fashion")
    assert len(model.class_names) == 10
    assert (model.heads, model.negative, model.null) == (2, True, 10)
    card = (folder / "README.md").read_text()
    for word in ("Fashion-MNIST", "fastguide train", "Frechet"):
        assert word in card


def test_the_readme_picture_is_what_the_command_makes(tmp_path):
    """Its first row, of six: a sample is the same in any batch."""
    out = tmp_path / "samples.png"
    sample_command(out=out, seeds="0-9")
    with Image.open(out) as made, Image.open(ROOT / "docs" / "images" / "fashion.png") as shown:
        assert made.width == shown.width
        row = made.height - 2  # above the last gap
        assert (shown.height - made.height) % 5 == 0
        pixels, whole = np.asarray(made, dtype=float), np.asarray(shown, dtype=float)
        difference = np.abs(pixels[:row] - whole[:row])
    assert difference.mean() < 1.0  # of 255: rounding may differ from one CPU to another


def python_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_the_readme_example_runs():
    code = python_blocks()[0].replace("60", "4")  # fewer images, the same calls
    names: dict[str, object] = {}
    exec(code, names)
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (4, 1, 28, 28)
    assert images.isfinite().all()


def test_single_pass_and_two_pass_guidance_agree_on_the_bundled_model():
    """Not the same numbers: two trained predictions of the same thing. Off, they are the same."""
    model = fg.load("fashion")
    labels = torch.arange(10)
    one = fg.sample(model, labels, fg.Superconditioning(3.0), steps=8, seeds=range(10))
    two = fg.sample(model, labels, fg.CFG(3.0), steps=8, seeds=range(10))
    plain = fg.sample(model, labels, steps=8, seeds=range(10))
    assert (one - two).square().mean() < (one - plain.flip(0)).square().mean() / 3
    assert (one - plain).abs().max() > 0.1
    other = fg.sample(
        model, labels, fg.Superconditioning(3.0), steps=8, seeds=range(10), negative=labels.flip(0)
    )
    assert (other - one).abs().max() > 0.1


def test_bf16_is_close_on_the_bundled_model():
    labels = torch.arange(10)
    full = fg.sample(
        fg.load("fashion"), labels, fg.Superconditioning(2.0), steps=8, seeds=range(10)
    )
    half = fg.load("fashion", dtype=torch.bfloat16)
    low = fg.sample(half, labels, fg.Superconditioning(2.0), steps=8, seeds=range(10))
    assert low.dtype == torch.float32
    assert (low - full).abs().mean() < 0.05


def test_what_the_documents_name_exists():
    """Every `fg.name` in the README and the docs is a public name."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for found in re.findall(r"\bfg\.(\w+)", page.read_text()):
            assert hasattr(fg, found), f"{page.name} says fg.{found}"
