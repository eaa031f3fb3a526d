"""The state of a training run on disk: from it the run goes on to the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

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
        ValueError: the file is damaged, or is the state of a run with other settings.
    """
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata.get("settings") != settings:
                raise ValueError(
                    f"{path} is the state of a run with other settings; choose another folder, "
                    "or remove it to start anew"
                )
            step = int(metadata["step"])
            for name, value in parameters.items():
                with torch.no_grad():
                    value.copy_(file.get_tensor(f"weights.{name}"))
                    for kind, average in averages.items():
                        average[name].copy_(file.get_tensor(f"{kind}.{name}"))
                optimizer.state[value] = {"step": torch.tensor(float(step))}
                for moment in ("exp_avg", "exp_avg_sq"):
                    # laid out as the weights are: the fused optimizer goes through memory
                    laid = torch.empty_like(value, requires_grad=False)
                    optimizer.state[value][moment] = laid.copy_(file.get_tensor(f"{moment}.{name}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; remove it to start anew") from error
    return step
