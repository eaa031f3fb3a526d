"""Averaged weights of any length after the training: power-function averages (Karras et al. 2024,
"Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C).

The average of length s at step T weighs the weights of step t by `(t / T)^gamma`; s is the standard
deviation of that profile over T. Two such averages, kept now and then, span the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from fastguide.checkpoint.regular import open_regular
from fastguide.checkpoint.weights import check_finite, check_names
from fastguide.common.files import write_atomic

FOLDER = "averages"


def gamma_of(length: float) -> float:
    """The exponent of the average of relative length `length`, in (0, 1 / sqrt(12)): the largest
    root of `g^3 + 7 g^2 + (16 - s^-2) g + (12 - s^-2)`.
    """
    if not 0.0 < length < 12**-0.5:
        raise ValueError(f"length is {length}, but it should lie in (0, {12**-0.5:.4f})")
    inverse = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


@dataclass(frozen=True)
class Kept:
    """One average on disk: its length, its step, and the file."""

    length: float
    step: int
    path: Path


class PowerAverages:
    """Averages of several lengths that follow the weights."""

    def __init__(self, lengths: Sequence[float], weights: Mapping[str, Tensor]) -> None:
        self.gammas = {length: gamma_of(length) for length in lengths}
        self.averages = {
            length: {name: value.detach().clone() for name, value in weights.items()}
            for length in lengths
        }

    def update(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights after `step` = 1, 2, ...: `beta = (1 - 1 / step)^(gamma + 1)`."""
        values = [value.detach() for value in weights.values()]
        for length, gamma in self.gammas.items():
            beta = (1.0 - 1.0 / step) ** (gamma + 1.0)
            torch._foreach_lerp_(list(self.averages[length].values()), values, 1.0 - beta)

    def save(self, out: Path, step: int) -> None:
        """Keep all of them below `out`."""
        for length, average in self.averages.items():
            tensors = {name: value.contiguous() for name, value in average.items()}
            metadata = {"length": repr(length), "step": str(step)}
            name = f"{length:.4f}-{step:07d}.safetensors"
            write_atomic(out / FOLDER / name, tensors_to_bytes(tensors, metadata))


def kept_averages(out: Path) -> list[Kept]:
    """What `PowerAverages.save` kept below `out`, by step and length."""
    found = []
    for path in sorted((out / FOLDER).glob("[!.]*.safetensors")):
        try:
            with open_regular(path):
                pass  # no FIFO, no device, no holes
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            kept = Kept(float(metadata["length"]), int(metadata["step"]), path)
            gamma_of(kept.length)
            if kept.step < 1:
                raise ValueError(f"step is {kept.step}, but it should be 1 or more")
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from error
        found.append(kept)
    if not found:
        raise FileNotFoundError(
            f"{out} holds no {FOLDER}; train with averages (`fastguide train --lengths 0.05,0.1`)"
        )
    return sorted(found, key=lambda one: (one.step, one.length))


def reconstruct(kept: Sequence[Kept], length: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of `length` at `step` (the last one kept by default): the combination of the kept
    ones whose profile is nearest, in fp64; the averages of later steps are left out.

    Raises:
        ValueError: a length or a step outside what was kept; a file whose tensors are not fp32,
            finite, and of the names and shapes of the others.
    """
    last = max(one.step for one in kept)
    step = last if step is None else step
    used = [one for one in kept if one.step <= step]
    if not used or step > last:
        raise ValueError(
            f"step is {step}, but averages are kept from step {min(k.step for k in kept)} to {last}"
        )
    profiles = [(one.step, gamma_of(one.length)) for one in used]
    target = (step, gamma_of(length))
    matrix = np.array([[_inner(a, b) for b in profiles] for a in profiles])
    right = np.array([_inner(a, target) for a in profiles])
    shares = np.linalg.lstsq(matrix, right, rcond=None)[0]
    shares = shares / shares.sum()
    total: dict[str, Tensor] = {}
    for one, share in zip(used, shares, strict=True):
        for name, value in _read(one.path, total).items():
            part = float(share) * value.double()
            total[name] = total[name] + part if name in total else part
    return {name: value.float() for name, value in total.items()}


def _read(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a kept average; of the names and shapes of `like`, unless that is empty."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if like:
                check_names(path, names, like)
            for name in names:
                shape = file.get_slice(name).get_shape()
                if like and shape != list(like[name].shape):
                    raise ValueError(
                        f"{path}: {name} has shape {shape}, but {list(like[name].shape)} in the "
                        "other averages"
                    )
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            raise ValueError(f"{path}: {name} is {value.dtype}, but it should be fp32")
    check_finite(path, tensors)
    return tensors


def _inner(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The inner product of two profiles (step, gamma), each of integral 1."""
    (ta, ga), (tb, gb) = a, b
    exponent = gb if ta < tb else -ga
    ratio = math.exp(exponent * math.log(ta / tb))
    return (ga + 1) * (gb + 1) * ratio / ((ga + gb + 1) * max(ta, tb))
