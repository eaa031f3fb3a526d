"""The attention that each key gets, without the matrix: csrc/cpu/attention_colsum.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

import fastguide._C  # noqa: F401  (registers the schema)
from fastguide.ops.heads import check_first, check_heads


def attention_colsum(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """fp32 `[R, M]`: `m_j = mean_heads sum_i softmax(scale q k^T)[i, j]`, which SAG (Hong et al.
    2023) compares with 1, its mean over j where there are as many queries as keys.

    Args:
        q: `[R, heads, N, D]`, fp32, bf16 or fp16, D up to 256, any strides with the last one 1.
        k: `[R, heads, M, D]`, of the same dtype, likewise.
        scale: 1 / sqrt(D) by default.

    Raises:
        ValueError: a shape, dtype, device or layout is not as above.
    """
    check_first("q", q)
    check_heads("k", k, q, like_name="q", tokens=False)
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    return torch.ops.fastguide.attention_colsum(q, k, scale)


@torch.library.register_fake("fastguide::attention_colsum")
def _attention_colsum_fake(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return q.new_empty((k.shape[0], k.shape[2]), dtype=torch.float32)


@torch.library.impl("fastguide::attention_colsum", "CUDA")
def _attention_colsum_cuda(q: Tensor, k: Tensor, scale: float) -> Tensor:
    from fastguide.kernels.attention_colsum import attention_colsum as launch

    return launch(q, k, scale)
