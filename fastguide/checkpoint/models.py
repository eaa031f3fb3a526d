"""Models on disk: `model.safetensors` and `model.json` in one folder. Nothing is ever unpickled.

The JSON holds the SHA-256 of the weights, so damage is found before anything runs. Files are
written under a temporary name and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from fastguide.common.files import write_atomic
from fastguide.model import Model
from fastguide.nets import NETS
from fastguide.process import EDM, VP, Flow, Prediction

FORMAT = 1
READERS = {  # by the kind of network
    **dict.fromkeys(NETS, "load"),
    "Encoder": "load_classifier",
    "TextImageNet": "load_text_image",
}
_PROCESSES = {"VP": VP, "EDM": EDM, "Flow": Flow}
_PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, of another version, or of a kind that is not read."""


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name."""
    stored = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return hashlib.sha256(tensors_to_bytes(stored)).hexdigest()


class Stored(NamedTuple):
    """What a folder holds: a network, and what the numbers that go in and out of it mean."""

    net: Any
    process: VP | EDM | Flow
    prediction: Prediction
    shape: tuple[int, ...]
    class_names: tuple[str, ...]


def save(
    folder: str | Path,
    model: Model,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` to `folder`, its weights stored as `dtype`.

    Args:
        weights: stored instead of the network's own (an average of them, say).
        training: anything worth keeping of how it was made; JSON.
    """
    net = model.net
    if not isinstance(net, nn.Module) or type(net).__name__ not in NETS:
        raise TypeError(f"net is a {type(net).__name__}, but only {', '.join(NETS)} can be saved")
    stored = Stored(net, model.process, model.prediction, model.shape, model.class_names)
    write(folder, stored, weights, dtype, training)


def write(
    folder: str | Path,
    stored: Stored,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write any network of `fastguide.nets`; arguments as `save` has them."""
    net = stored.net
    weights = net.state_dict() if weights is None else weights
    cast = {name: value.to("cpu", dtype).contiguous() for name, value in weights.items()}
    data = tensors_to_bytes(cast)
    description = {
        "format": FORMAT,
        "net": {"name": type(net).__name__, **net.config},
        "process": {"name": type(stored.process).__name__, **asdict(stored.process)},
        "prediction": asdict(stored.prediction),
        "shape": list(stored.shape),
        "class_names": list(stored.class_names),
        "weights": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)},
        "training": dict(training or {}),
    }
    folder = Path(folder)
    write_atomic(folder / "model.safetensors", data)
    write_atomic(folder / "model.json", (json.dumps(description, indent=2) + "\n").encode())


def load(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Model:
    """Read a model that `save` wrote, in evaluation mode, on `device`, with weights of `dtype`.

    Raises:
        CheckpointError: see the class.
    """
    return describe(*read(folder, NETS, device, dtype))


def read(
    folder: str | Path,
    nets: Mapping[str, type[nn.Module]],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Stored:
    """Read a folder whose network is one of `nets`, as `load` does.

    Raises:
        CheckpointError: see the class.
    """
    folder = Path(folder)
    description = read_description(folder)
    data = _read_weights(folder, description["weights"])
    try:
        config = dict(description["net"])
        name = config.pop("name")
        if name not in nets:
            reader = f"; fastguide.{READERS[name]} reads it" if name in READERS else ""
            raise CheckpointError(f"{folder}: net is {name!r}, not one of {sorted(nets)}{reader}")
        net = nets[name](**config)
        process = dict(description["process"])
        kind = _PROCESSES[process.pop("name")](**process)
        prediction = Prediction(**description["prediction"])
        shape = tuple(int(side) for side in description["shape"])
        class_names = tuple(description["class_names"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / 'model.json'} does not describe a model: {error!r}"
        ) from error
    try:
        net.load_state_dict(tensors_from_bytes(data))
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the weights do not fit the network: {error}") from error
    net.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Stored(net, kind, prediction, shape, class_names)


def describe(
    net: Any,
    process: VP | EDM | Flow,
    prediction: Prediction,
    shape: tuple[int, ...],
    class_names: tuple[str, ...],
) -> Model:
    """The Model of one of our own networks."""
    return Model(
        net=net,
        process=process,
        prediction=prediction,
        shape=shape,
        null=net.classes if net.classes else None,
        heads=net.heads,
        negative=net.negative,
        class_names=class_names,
        variance=net.variance,
    )


def read_description(folder: Path) -> dict[str, Any]:
    """The checked content of `folder/model.json`."""
    if folder.suffix.lower() in _PICKLES:
        raise CheckpointError(
            f"{folder} looks like a pickle, which can run any code when it is read; "
            "fastguide reads only folders with model.safetensors and model.json"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder with model.safetensors and model.json")
    try:
        description = json.loads((folder / "model.json").read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no model.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / 'model.json'} is damaged: {error}") from error
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"{folder / 'model.json'} has format {version!r}, "
            f"but this version reads format {FORMAT}"
        )
    missing = {"net", "process", "prediction", "shape", "class_names", "weights"} - set(description)
    if missing:
        raise CheckpointError(f"{folder / 'model.json'} lacks {', '.join(sorted(missing))}")
    return description


def _read_weights(folder: Path, expected: Mapping[str, Any]) -> bytes:
    path = folder / "model.safetensors"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no model.safetensors") from None
    if len(data) != expected.get("bytes"):
        raise CheckpointError(
            f"{path} is truncated or of another run: {len(data)} bytes, not {expected.get('bytes')}"
        )
    if hashlib.sha256(data).hexdigest() != expected.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one in model.json")
    return data
