"""Dtypes by the names that the command line takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STORED = ("fp32", "fp16")  # of weights on disk
COMPUTED = ("fp32", "bf16", "fp16")


def dtype_of(name: str, known: tuple[str, ...]) -> torch.dtype:
    """The dtype called `name`, one of `known`."""
    import torch

    if name not in known:
        raise ValueError(f"dtype is {name!r}, but it should be one of {', '.join(known)}")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
