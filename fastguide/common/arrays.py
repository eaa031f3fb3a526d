"""Tensors, dtypes and devices as people have them: arrays, lists and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastguide.common.checks import did_you_mean, shown

DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_OTHER_NAMES = {
    "float32": "fp32",
    "float": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
}


def as_tensor(value: Any) -> Any:
    """A tensor on the host where `value` is an array, or a list of numbers or arrays; else itself.

    fp64 becomes fp32, as which all images and noise are taken.
    """
    listed = isinstance(value, (list, tuple)) and len(value) > 0
    if isinstance(value, Tensor) or not (listed or hasattr(value, "__array__")):
        return value
    try:
        if listed and any(isinstance(one, Tensor) for one in value):
            found = torch.stack([torch.as_tensor(one) for one in value])
        else:
            found = torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return value  # which the caller refuses
    return found.float() if found.dtype == torch.float64 else found


def as_dtype(dtype: torch.dtype | str, name: str = "dtype") -> torch.dtype:
    """The dtype of a name such as "bf16"; fp32, bf16 or fp16.

    Raises:
        TypeError, ValueError: it is another.
    """
    wanted = "but it should be torch.float32, torch.bfloat16 or torch.float16, or fp32, bf16, fp16"
    if isinstance(dtype, str):
        key = dtype.lower().removeprefix("torch.")
        found = DTYPES.get(_OTHER_NAMES.get(key, key))
        if found is None:
            hint = did_you_mean(key, DTYPES)
            raise ValueError(f"{name} is {dtype!r}, {wanted}{hint}")
        return found
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is {shown(dtype)}, {wanted}")
    if dtype not in DTYPES.values():
        raise ValueError(f"{name} is {dtype}, {wanted}")
    return dtype


def as_device(device: torch.device | str) -> torch.device:
    """`device` as one that is there: the CPU or a GPU.

    Raises:
        TypeError, ValueError: it is another.
    """
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device is {shown(device)}, but it should be a torch.device or its name")
    try:
        found = torch.device(device.lower() if isinstance(device, str) else device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        hint = "; an NVIDIA GPU is 'cuda'" if str(device).lower().startswith("gpu") else ""
        raise ValueError(
            f"device is {shown(device)}, but it should be one such as 'cpu' or 'cuda:0'{hint}"
        )
    count = torch.cuda.device_count() if found.type == "cuda" else 1
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ValueError(f"device is {shown(device)}, but torch sees {count} GPUs")
    return found
