"""What the nursery's children run: the commands, and reading what they left."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import rich.progress  # noqa: F401 (this and the next: once, not in every child)
import torch
import torch._dynamo
from PIL import Image

import fastguide as fg
import fastguide.training
from fastguide.checkpoint import judges
from fastguide.checkpoint import models as checkpoint
from fastguide.cli.app import app
from fastguide.nets import DiT, Encoder, TextImageNet, UNet

SECRET = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)  # an image outside
READERS = {"load": fg.load, "classifier": fg.load_classifier, "clip": fg.load_text_image}


def command(*arguments: str) -> None:
    """`fastguide ARGUMENTS`, its errors as they are raised."""
    torch.set_num_threads(1)
    app(list(arguments), standalone_mode=False)


def fingerprint(folder: str, reader: str) -> dict[str, str]:
    """SHA-256 of the weights and the description of the model in `folder`, or of the pixels of each
    image; of nothing nothing.
    """
    if reader == "images":
        found = {}
        for path in sorted(Path(folder).glob("[!.]*")):
            data = path.read_bytes()  # of the manifest
            if path.suffix == ".png":
                with Image.open(path) as image:
                    data = image.tobytes()
            found[path.name] = hashlib.sha256(data).hexdigest()
        return found
    if not (Path(folder) / "model.json").exists():
        return {}
    model = READERS[reader](folder)
    weights = checkpoint.digest(model.net.state_dict())
    about = (model.process, model.prediction, model.shape, model.class_names)
    return {"model": hashlib.sha256(f"{weights} {about}".encode()).hexdigest()}


def leftovers(folder: str) -> list[str]:
    """Temporary files below `folder`."""
    return sorted(str(path) for path in Path(folder).rglob("*.tmp"))


def read_data(folder: str) -> int:
    """Read a data folder; how many images it has."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = fastguide.training.load_images(folder)
    if not len(images.pixels) == len(images.labels) > 0:
        raise RuntimeError(f"{len(images.pixels)} images, {len(images.labels)} labels")
    if images.pixels.shape[-3:] == (3, 5, 6) and (images.pixels == SECRET).flatten(1).all(1).any():
        raise RuntimeError("an image of elsewhere was read")
    return len(images.pixels)


def make_checkpoints(place: str) -> None:
    """A tiny one of each kind of network, in folders of `place`."""
    torch.manual_seed(0)
    flow, names = (fg.Flow(), fg.Prediction("flow"), (1, 8, 8)), ("a", "b", "c")
    tower = {"width": 16, "multipliers": (1, 2), "res_blocks": 1, "attention": (2,), "groups": 4}
    tower["head_channels"] = 16
    dit = DiT(width=24, depth=2, attention_heads=2, patch=2, classes=3, heads=2, split=True)
    vp = (fg.VP("cosine"), fg.Prediction("v"), (1, 8, 8))
    fg.save(f"{place}/dit", checkpoint.describe(dit, *flow, names), training={"steps": 3})
    fg.save(f"{place}/unet", checkpoint.describe(UNet(**tower, classes=3), *vp, names))
    judges.save(f"{place}/encoder", judges.Classifier(Encoder(3, **tower), *flow, names))
    pair = TextImageNet(8, **tower, text_width=16, text_depth=1, text_heads=2)
    judges.save(f"{place}/pair", judges.TextImage(pair, *flow, names))


def read_and_run(folder: str, reader: str) -> None:
    """Read a model; what is read runs, and is finite."""
    torch.set_num_threads(1)
    model: Any = READERS[reader](folder)
    for name, weight in model.net.state_dict().items():
        if not weight.isfinite().all():
            raise RuntimeError(f"{name} is not finite")
    if max(model.shape) > 64:
        return
    x, t = torch.zeros(1, *model.shape), torch.full((1,), 0.5)
    if reader == "clip":
        model.image(x, t), model.text(["a"])
    else:
        model.net(x, t)
