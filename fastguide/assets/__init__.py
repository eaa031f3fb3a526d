"""The models that ship with the package, and `load`, which finds them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastguide.checkpoint import models as checkpoint
from fastguide.checkpoint.judges import load_classifier, load_text_image
from fastguide.common.arguments import answering
from fastguide.common.checks import did_you_mean, shown
from fastguide.model import Model

_HERE = Path(__file__).parent


def bundled() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in _HERE.glob("*/model.json"))


def path_of(name: str) -> Path:
    """The folder of a bundled model."""
    return _HERE / name


@answering
def load(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
) -> Model:
    """A bundled model by its name, or one from a folder with model.safetensors and model.json.

    The network is in evaluation mode on `device`, with weights of `dtype` (fp32, bf16 or fp16).

    Raises:
        CheckpointError: there is no such model, or it is damaged, truncated, a pickle, or of
            another version.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"name is {shown(name)}, but it should be a bundled model's, or a folder")
    if isinstance(name, str) and name.lower() in bundled() and not Path(name).exists():
        name = name.lower()
    if isinstance(name, str) and name in bundled():
        return replace(checkpoint.load(_HERE / name, device, dtype), source=name)
    if not Path(name).exists():
        known = ", ".join(bundled()) or "none"
        raise checkpoint.CheckpointError(
            f"model is {str(name)!r}, but that is neither a folder nor a bundled model ({known})"
            f"{did_you_mean(str(name), bundled())}"
        )
    return checkpoint.load(name, device, dtype)


def loader(
    device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
) -> Callable[[str, str], Any]:
    """What `parse(text, load=loader())` finds the networks with that a text names: bundled models
    and folders of models, classifiers and text-image encoders. A folder is read once.

    Raises:
        CheckpointError, when it is called: see `load`.

    Example:
        >>> fastguide.parse("autoguidance:2,weak=bench/models/fashion-weak", fastguide.loader())
    """
    kinds: dict[str, Callable[..., Any]] = {
        "model": load,
        "classifier": load_classifier,
        "text_image": load_text_image,
    }
    found: dict[tuple[str, str], Any] = {}

    def loaded(kind: str, name: str) -> Any:
        if (kind, name) not in found:
            found[kind, name] = kinds[kind](name, device, dtype)
        return found[kind, name]

    return loaded
