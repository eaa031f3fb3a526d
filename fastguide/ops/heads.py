"""Checks of tensors `[R, heads, tokens, D]`, slices or transposes of fused projections."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_DIM = 256  # what a GPU's registers hold


def check_heads(name: str, tensor: Tensor, like: Tensor, *, like_name: str, tokens: bool) -> None:
    """`tensor` agrees with `like`; the number of tokens may differ unless `tokens`."""
    same = tensor.shape == like.shape
    if not tokens and tensor.ndim == like.ndim == 4:
        same = tensor.shape[:2] == like.shape[:2] and tensor.shape[3] == like.shape[3]
    if not same:
        rows, heads, count, dim = like.shape
        raise ValueError(
            f"{name}.shape is {tuple(tensor.shape)}, but it should be "
            f"{(rows, heads, count if tokens else 'any', dim)}, as {like_name} is"
        )
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name}.dtype is {tensor.dtype}, but {like_name} is {like.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, but {like_name} is on {like.device}")
    check_layout(name, tensor)


def check_first(name: str, tensor: Tensor) -> None:
    """`tensor`, to which the others are compared, is `[R, heads, tokens, D]` and of a known dtype.

    Raises:
        ValueError: its shape, dtype or layout is another.
    """
    if tensor.ndim != 4 or not 1 <= tensor.shape[3] <= MAX_DIM:
        raise ValueError(
            f"{name}.shape is {tuple(tensor.shape)}, but it should be [R, heads, tokens, D], "
            f"D from 1 to {MAX_DIM}"
        )
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name}.dtype is {tensor.dtype}, but it should be fp32, bf16 or fp16")
    check_layout(name, tensor)


def check_layout(name: str, tensor: Tensor) -> None:
    """The numbers of one token and head lie one after the other."""
    if tensor.shape[3] > 1 and tensor.stride(3) != 1:
        raise ValueError(f"{name} has strides {tensor.stride()}, but the last one should be 1")
