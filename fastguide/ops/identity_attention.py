"""Attention in which an image token sees itself and the context, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

import fastguide._C  # noqa: F401  (registers the schema)
from fastguide.ops.heads import check_first, check_heads


def identity_attention(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    context_k: Tensor | None = None,
    context_v: Tensor | None = None,
    scale: float | None = None,
    context_mask: Tensor | None = None,
) -> Tensor:
    """`softmax(scale {q_i k_i, q_i k^c_1 ... q_i k^c_T})` applied to `{v_i, v^c_1 ... v^c_T}`.

    The perturbed attention of PAG (Ahn et al. 2024) where image and text attend jointly.

    Without a context the output is v; q and k are not looked at then, and may be None.

    Args:
        q, k, v: `[R, heads, N, D]`, one dtype of fp32, bf16, fp16, D up to 256, any strides
            with the last one 1.
        context_k, context_v: `[R, heads, T, D]`, of the same dtype, likewise.
        scale: 1 / sqrt(D) by default.
        context_mask: bool `[R, T]`, False where a context key is padding; none is by default.

    Returns:
        `[R, heads, N, D]`, whose `.transpose(1, 2).flatten(2)` is a view. Scores, softmax and sums
        are fp32.

    Raises:
        ValueError: a shape, dtype, device or layout is not as above, or a part is missing.
    """
    check_first("v", v)
    if (context_k is None) != (context_v is None):
        missing, given = ("context_k", "context_v")[:: 1 if context_k is None else -1]
        raise ValueError(f"{missing} is None, but {given} is given; both or neither should be")
    if context_k is None or context_v is None:
        if context_mask is not None:
            raise ValueError("context_mask is given, but context_k and context_v are None")
        return _by_token(v)
    check_heads("context_k", context_k, v, like_name="v", tokens=False)
    check_heads("context_v", context_v, context_k, like_name="context_k", tokens=True)
    if context_mask is not None:
        _check_mask(context_mask, context_k)
    if context_k.shape[2] == 0:
        return _by_token(v)
    if q is None or k is None:
        raise ValueError(f"{'q' if q is None else 'k'} is None, but there is a context")
    check_heads("q", q, v, like_name="v", tokens=True)
    check_heads("k", k, v, like_name="v", tokens=True)
    return torch.ops.fastguide.identity_attention(
        q,
        k,
        v,
        context_k,
        context_v,
        v.shape[3] ** -0.5 if scale is None else float(scale),
        context_mask,
    )


def _by_token(v: Tensor) -> Tensor:
    """v, copied only where the heads of a token do not lie one after the other."""
    if v.shape[1] == 1 or v.stride(1) == v.shape[3]:
        return v
    return v.transpose(1, 2).contiguous().transpose(1, 2)


def _check_mask(mask: Tensor, context_k: Tensor) -> None:
    rows, _, keys, _ = context_k.shape
    if mask.dtype != torch.bool or mask.shape != (rows, keys):
        raise ValueError(
            f"context_mask is {mask.dtype} of shape {tuple(mask.shape)}, "
            f"but it should be bool {(rows, keys)}"
        )
    if mask.device != context_k.device:
        raise ValueError(
            f"context_mask is on {mask.device}, but context_k is on {context_k.device}"
        )


@torch.library.register_fake("fastguide::identity_attention")
def _identity_attention_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context_k: Tensor,
    context_v: Tensor,
    scale: float,
    context_mask: Tensor | None,
) -> Tensor:
    rows, heads, queries, dim = q.shape
    return q.new_empty(rows, queries, heads, dim).transpose(1, 2)
