"""The models that ship with the package, and `load`, which finds them by name."""

from __future__ import annotations

from pathlib import Path

import torch

from fastguide.checkpoint import models as checkpoint
from fastguide.common.checks import shown
from fastguide.model import Model

_HERE = Path(__file__).parent


def bundled() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.parent.name for path in _HERE.glob("*/model.json"))


def load(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Model:
    """A bundled model by its name, or one from a folder with model.safetensors and model.json.

    The network is in evaluation mode on `device`, with weights of `dtype` (fp32, bf16 or fp16).

    Raises:
        CheckpointError: there is no such model, or it is damaged, truncated, a pickle, or of
            another version.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"model is {shown(name)}, but it should be a name or a folder")
    if isinstance(name, str) and name in bundled():
        return checkpoint.load(_HERE / name, device, dtype)
    if not Path(name).exists():
        known = ", ".join(bundled()) or "none"
        raise checkpoint.CheckpointError(
            f"model is {str(name)!r}, but that is neither a folder nor a bundled model ({known})"
        )
    return checkpoint.load(name, device, dtype)
