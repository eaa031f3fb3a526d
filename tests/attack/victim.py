"""What the nursery's children run: the commands, and reading what they left."""

from __future__ import annotations

import hashlib
from pathlib import Path

import rich.progress  # noqa: F401 (this and the next: once, not in every child)
import torch
import torch._dynamo

import fastguide as fg
import fastguide.training
from fastguide.checkpoint import models as checkpoint
from fastguide.cli import app

READERS = {"load": fg.load, "classifier": fg.load_classifier, "clip": fg.load_text_image}


def command(*arguments: str) -> None:
    """`fastguide ARGUMENTS`, its errors as they are raised."""
    torch.set_num_threads(1)
    app(list(arguments), standalone_mode=False)


def fingerprint(folder: str, reader: str) -> str:
    """SHA-256 of the weights and the description of the model in `folder`."""
    model = READERS[reader](folder)
    weights = checkpoint.digest(model.net.state_dict())
    about = (model.process, model.prediction, model.shape, model.class_names)
    return hashlib.sha256(f"{weights} {about}".encode()).hexdigest()


def leftovers(folder: str) -> list[str]:
    """Temporary files below `folder`."""
    return sorted(str(path) for path in Path(folder).rglob("*.tmp"))
