"""The state of a training run on disk: from it the run goes on to the same numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from fastguide.checkpoint.errors import CheckpointError
from fastguide.checkpoint.regular import open_regular
from fastguide.common.files import write_atomic


def save_state(
    path: Path,
    settings: str,
    step: int,
    parameters: dict[str, nn.Parameter],
    averages: Mapping[str, dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write all that the next step depends on."""
    tensors = {}
    for name, value in parameters.items():
        moments = optimizer.state[value]
        tensors[f"weights.{name}"] = value.detach().contiguous()
        for kind, average in averages.items():
            tensors[f"{kind}.{name}"] = average[name].contiguous()
        tensors[f"exp_avg.{name}"] = moments["exp_avg"].contiguous()
        tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"].contiguous()
    metadata = {"settings": settings, "step": str(step)}
    metadata["sha256"] = state_digest(metadata, tensors)
    write_atomic(path, tensors_to_bytes(tensors, metadata))


def resume(
    path: Path,
    settings: str,
    parameters: dict[str, nn.Parameter],
    averages: Mapping[str, dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Read what `save_state` wrote, if anything, and return the steps that are done.

    Raises:
        ValueError: the file is damaged, or is the state of a run with other settings or other data;
            nothing has been read into the arguments then.
    """
    if not os.path.lexists(path):
        return 0
    kinds = ("weights", *averages, "exp_avg", "exp_avg_sq")
    wanted = {f"{kind}.{name}": value for kind in kinds for name, value in parameters.items()}
    try:
        step, tensors = _read(path, settings, wanted)
    except (SafetensorError, CheckpointError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it to start anew") from error
    for name, value in parameters.items():
        with torch.no_grad():
            value.copy_(tensors[f"weights.{name}"])
            for kind, average in averages.items():
                average[name].copy_(tensors[f"{kind}.{name}"])
        optimizer.state[value] = {"step": torch.tensor(float(step))}
        for moment in ("exp_avg", "exp_avg_sq"):
            # laid out as the weights are: the fused optimizer goes through memory
            laid = torch.empty_like(value, requires_grad=False)
            optimizer.state[value][moment] = laid.copy_(tensors[f"{moment}.{name}"])
    return step


def state_digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of both, the digest itself left out."""
    digest = hashlib.sha256()
    rest = {key: value for key, value in metadata.items() if key != "sha256"}
    digest.update(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path, settings: str, wanted: Mapping[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
    with open_regular(path):
        pass  # no FIFO, no device, no holes
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        _check_settings(path, metadata.get("settings", ""), settings)
        found = set(file.keys())
        for what, names in (("lacks", set(wanted) - found), ("has", found - set(wanted))):
            if names:
                raise CheckpointError(f"it {what} {min(names)[:80]!r}")
        for name, value in wanted.items():
            shape = file.get_slice(name).get_shape()
            if shape != list(value.shape):
                raise CheckpointError(f"{name} has shape {shape}, not {list(value.shape)}")
        tensors = {name: file.get_tensor(name) for name in wanted}
    if metadata.get("sha256") != state_digest(metadata, tensors):
        raise CheckpointError("its SHA-256 is not the one it states")
    return int(metadata["step"]), tensors


def _check_settings(path: Path, found: str, wanted: str) -> None:
    """Raise ValueError that names what differs."""
    if found == wanted:
        return
    differing = ", ".join(_differing(found, wanted)) or "all of them"
    raise ValueError(
        f"{path} is the state of a run with other settings ({differing}); choose another folder, "
        "or remove it to start anew"
    )


def _differing(found: str, wanted: str) -> list[str]:
    try:
        old, new = _flat(json.loads(found)), _flat(json.loads(wanted))
    except (ValueError, RecursionError):
        return []
    names = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    return [
        f"{name} {_short(old.get(name))} there, {_short(new.get(name))} now" for name in names[:5]
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(one, f"{name}.{key}" if name else key) for key, one in value.items()]
    return {key: one for part in parts for key, one in part.items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
