"""Inner products of predictions, per sample: what makes a projection a row of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fastguide._C  # noqa: F401  (registers the schema)
from fastguide.ops.step import PREDICTION_DTYPES, as_planes, check_deltas

MAX_BRANCHES = 8


def gram(
    x: Tensor,
    branches: Sequence[Tensor],
    base: Tensor,
    deltas: int = 0,
    factor: Tensor | None = None,
    factored: int = 0,
) -> Tensor:
    """Inner products and sums of `p_0, x0, delta_1 ... delta_{K-1}` over the elements of a sample:
    the maths of `fastguide.reference.gram`.

    Here `x0 = a x + b p_0`, and `delta_k = f_k (p_0 - p_k)`. All are formed before they are
    multiplied, as products of close predictions would lose the product of their difference.

    Args:
        x: fp32 `[B, *shape]`, contiguous.
        branches: K predictions `[B, *shape]`, each fp32, bf16 or fp16, any strides; the positive
            one first. 1 <= K <= 8.
        base: fp32 `[2]`: a, b, as in `table[e, :2]` (`fastguide.ops.table`); or `[B, 2]`, those of
            each sample.
        deltas: bit k is set where branch k is the difference itself, not p_k.
        factor: fp32 `[B, *shape]`, contiguous: f_k of the branches whose bit is set in `factored`;
            the others' is 1.

    Returns:
        fp64 `[B, n, n + 1]`, n = K + 1: `<v_i, v_j>` at [:, i, j], the sum of v_i at [:, i, n]; on
        one device the same to the bit for a sample, whatever the batch it is in.

    Raises:
        ValueError: a shape, dtype, device or layout is not as above.
    """
    _check(x, branches, base)
    check_deltas(x, branches, deltas, factor, factored)
    return torch.ops.fastguide.gram(
        as_planes(x, 1),
        [as_planes(branch, 1) for branch in branches],
        base,
        deltas,
        None if factor is None else as_planes(factor, 1),
        factored,
    )


def _check(x: Tensor, branches: Sequence[Tensor], base: Tensor) -> None:
    if x.ndim < 2 or x.dtype != torch.float32 or not x.is_contiguous():
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)} and strides {x.stride()}, "
            "but it should be contiguous fp32 [B, *shape]"
        )
    if not 1 <= len(branches) <= MAX_BRANCHES:
        raise ValueError(f"branches are {len(branches)}, but should be 1 to {MAX_BRANCHES}")
    for k, branch in enumerate(branches):
        if branch.shape != x.shape:
            raise ValueError(
                f"branches[{k}].shape is {tuple(branch.shape)}, but x is {tuple(x.shape)}"
            )
        if branch.dtype not in PREDICTION_DTYPES:
            raise ValueError(
                f"branches[{k}].dtype is {branch.dtype}, but it should be fp32, bf16 or fp16"
            )
        if branch.device != x.device:
            raise ValueError(f"branches[{k}] is on {branch.device}, but x is on {x.device}")
    if (
        base.shape not in ((2,), (x.shape[0], 2))
        or base.dtype != torch.float32
        or not base.is_contiguous()
        or base.device != x.device
    ):
        raise ValueError(
            f"base is {base.dtype} of shape {tuple(base.shape)} and strides {base.stride()} on "
            f"{base.device}, but it should be contiguous fp32 [2] or [{x.shape[0]}, 2] on "
            f"{x.device}"
        )


@torch.library.register_fake("fastguide::gram")
def _gram_fake(x: Tensor, branches: Sequence[Tensor], *_: Any) -> Tensor:
    n = len(branches) + 1
    return x.new_empty((x.shape[0], n, n + 1), dtype=torch.float64)


@torch.library.impl("fastguide::gram", "CUDA")
def _gram_cuda(*arguments: Any) -> Tensor:
    from fastguide.kernels.gram import gram

    return gram(*arguments)
