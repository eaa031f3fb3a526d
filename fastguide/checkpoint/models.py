"""Models on disk: `model.safetensors` and `model.json` in one folder. Nothing is ever unpickled.

The JSON holds the SHA-256 of the weights, so damage is found before anything runs. Both are
replaced together or not at all (`fastguide.checkpoint.together`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from fastguide.checkpoint.description import FORMAT, Description, read_description
from fastguide.checkpoint.errors import CheckpointError
from fastguide.checkpoint.together import replace_together, weights_paths
from fastguide.checkpoint.weights import Weights, check_finite, check_names, open_weights
from fastguide.common.arguments import answering
from fastguide.common.arrays import as_device, as_dtype
from fastguide.common.checks import shown
from fastguide.model import Model
from fastguide.nets import NETS
from fastguide.process import Noising, Prediction

_PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
_OTHERS = {
    "model_index.json": "fastguide.guide(DiffusionPipeline.from_pretrained(folder)) samples those "
    "pipelines, fastguide.from_diffusers their networks",
    "config.json": "fastguide.from_diffusers(network, scheduler) samples networks of diffusers "
    "that their own from_pretrained has loaded",
}
_TRIES = 5  # while another process keeps replacing the model


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name."""
    stored = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return hashlib.sha256(tensors_to_bytes(stored)).hexdigest()


class Stored(NamedTuple):
    """What a folder holds: a network, and what the numbers that go in and out of it mean."""

    net: Any
    process: Noising
    prediction: Prediction
    shape: tuple[int, ...]
    class_names: tuple[str, ...]


@answering
def save(
    folder: str | Path,
    model: Model,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | str = torch.float32,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` to `folder`, its weights stored as `dtype`.

    A model that is there already is replaced as a whole: a reader, or whoever comes after a kill,
    finds the old one or the new one.

    Args:
        weights: stored instead of the network's own (an average of them, say).
        training: anything worth keeping of how it was made; JSON.

    Raises:
        ValueError: the weights have other names or shapes than the network's, or are not finite as
            `dtype`.
    """
    if isinstance(folder, Model):
        raise TypeError(f"folder is a Model, and model is {shown(model)}; call save(folder, model)")
    if not isinstance(model, Model):
        raise TypeError(f"model is {shown(model)}, but it should be a fastguide.Model")
    net = model.net
    if not isinstance(net, nn.Module) or type(net).__name__ not in NETS:
        raise TypeError(f"net is a {type(net).__name__}, but only {', '.join(NETS)} can be saved")
    stored = Stored(net, model.process, model.prediction, model.shape, model.class_names)
    write(folder, stored, weights, dtype, training)


def write(
    folder: str | Path,
    stored: Stored,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | str = torch.float32,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write any network of `fastguide.nets`; arguments and errors as `save` has them."""
    net, folder = stored.net, Path(folder)
    own = net.state_dict()
    weights = own if weights is None else weights
    check_names(folder, weights, own)
    for name, value in weights.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"weights[{name!r}].shape is {tuple(value.shape)}, but the network's is "
                f"{tuple(own[name].shape)}"
            )
    stored_as = as_dtype(dtype)
    cast = {name: value.to("cpu", stored_as).contiguous() for name, value in weights.items()}
    check_finite(folder, cast)
    data = tensors_to_bytes(cast)
    sha256 = hashlib.sha256(data).hexdigest()
    description = {
        "format": FORMAT,
        "net": {"name": type(net).__name__, **net.config},
        "process": {"name": type(stored.process).__name__, **asdict(stored.process)},
        "prediction": asdict(stored.prediction),
        "shape": list(stored.shape),
        "class_names": list(stored.class_names),
        "weights": {"sha256": sha256, "bytes": len(data)},
        "training": dict(training or {}),
    }
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    replace_together(folder, data, sha256, text.encode())


def load(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
) -> Model:
    """Read a model that `save` wrote, in evaluation mode, on `device`, with weights of `dtype`.

    Raises:
        CheckpointError: see the class.
    """
    return replace(describe(*read(folder, NETS, device, dtype)), source=str(folder))


def read(
    folder: str | Path,
    nets: Mapping[str, type[nn.Module]],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str = torch.float32,
) -> Stored:
    """Read a folder whose network is one of `nets`, as `load` does.

    Raises:
        CheckpointError: see the class.
    """
    if not isinstance(folder, (str, Path)):
        raise TypeError(f"folder is {shown(folder)}, but it should be a path")
    folder, device, dtype = Path(folder), as_device(device), as_dtype(dtype)
    _check_folder(folder)
    for left in reversed(range(_TRIES)):
        about = read_description(folder, nets)
        try:
            with _open_weights(folder, about) as file:
                net = _build(folder, about, nets, len(file.entries))
                weights = file.read(net.state_dict())
                _check_meaning(folder, about, net)
            break
        except CheckpointError:
            if left == 0 or read_description(folder, nets) == about:
                raise
    net.to_empty(device="cpu").load_state_dict(weights)
    net.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Stored(net, about.process, about.prediction, about.shape, about.class_names)


def describe(
    net: Any,
    process: Noising,
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


def _check_folder(folder: Path) -> None:
    if folder.suffix.lower() in _PICKLES:
        raise CheckpointError(
            f"{folder} looks like a pickle, which can run any code when it is read; "
            "fastguide reads only folders with model.safetensors and model.json"
        )
    for name, right in _OTHERS.items():
        if (folder / name).is_file() and not (folder / "model.json").is_file():
            raise CheckpointError(f"{folder} has {name} of another library, but {right}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder with model.safetensors and model.json")


def _build(
    folder: Path, about: Description, nets: Mapping[str, type[nn.Module]], tensors: int
) -> Any:
    """The network on `meta`, where weights take no memory.

    Args:
        tensors: how many the file has: a network of more layers is not built.
    """
    try:
        if about.layers > tensors:
            raise ValueError(f"net has {about.layers} layers, but there are {tensors} tensors")
        with torch.device("meta"):
            return nets[about.net](**about.config)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"{folder / 'model.json'} does not describe a model: {error}"
        ) from error


def _check_meaning(folder: Path, about: Description, net: Any) -> None:
    """What the description says of samples and classes fits the network."""
    try:
        net.check_shape(about.shape)
    except ValueError as error:
        raise CheckpointError(
            f"{folder / 'model.json'} does not describe a model: {error}"
        ) from error
    classes = getattr(net, "classes", None) or getattr(net, "outputs", 0)
    names = len(about.class_names)
    if classes and names not in (0, classes):
        raise CheckpointError(
            f"{folder / 'model.json'} does not describe a model: class_names has {names} names "
            f"for {classes} classes"
        )


@contextmanager
def _open_weights(folder: Path, about: Description) -> Iterator[Weights]:
    with ExitStack() as stack:
        for path in weights_paths(folder, about.sha256):
            try:
                file = stack.enter_context(open_weights(path, about))
            except FileNotFoundError:
                continue
            yield file
            return
        raise CheckpointError(f"{folder} holds no model.safetensors")
