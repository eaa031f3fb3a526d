"""Self-attention of a packed projection, with its gradient: csrc/cpu/self_attention.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastguide._C  # noqa: F401  (registers the schema)
from fastguide.ops.heads import MAX_DIM

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """`softmax(q k^T / sqrt(D)) v` `[rows, N, width]`, in fp32 and rounded once.

    On the CPU in fp32 it is fastguide's kernel; elsewhere it is torch's. The former has a gradient,
    but no second one. For it, qkv and the result are kept and one number a query and head.

    Args:
        qkv: `[rows, N, 3 width]`, fp32, bf16 or fp16, contiguous: q, k and v one after the other,
            each of `heads` heads of D <= 256 channels.
        heads: divides width.

    Returns:
        As qkv; with fastguide's kernel the same to the bit for a row, whatever the other rows are.

    Raises:
        ValueError: a shape, dtype or layout is not as above, or `heads` is not.
    """
    _check(qkv, heads)
    if _torch_is_faster(qkv):
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return torch.ops.fastguide.self_attention(qkv, heads)[0]


def _torch_is_faster(qkv: Tensor) -> bool:
    """Where torch's kernels are at least as fast: on GPUs, and in bf16 and fp16 on processors that
    multiply these (AMX). In fp32 ours takes 0.4 to 0.8 of torch's time, at N from 49 to 4,096.
    """
    return qkv.device.type != "cpu" or qkv.dtype != torch.float32


def _check(qkv: Tensor, heads: int) -> None:
    if qkv.ndim != 3 or qkv.dtype not in _DTYPES or not qkv.is_contiguous():
        raise ValueError(
            f"qkv is {qkv.dtype} of shape {tuple(qkv.shape)} and strides {qkv.stride()}, but it "
            "should be contiguous fp32, bf16 or fp16 [rows, N, 3 width]"
        )
    _, count, channels = qkv.shape
    if count < 1 or channels < 3 or channels % 3:
        raise ValueError(
            f"qkv.shape is {tuple(qkv.shape)}, but it should be [rows, N, 3 width], with N and "
            "width 1 or more"
        )
    width = channels // 3
    if heads < 1 or width % heads or width // heads > MAX_DIM:
        raise ValueError(
            f"heads is {heads}, but it should divide the {width} channels of q into heads of "
            f"{MAX_DIM} at most"
        )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, ctx.heads = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, out, lse)


def _backward(ctx: Any, outward: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
    if outward is None:
        return None, None
    backward = torch.ops.fastguide.self_attention_backward
    return backward(outward.contiguous(), *ctx.saved_tensors, ctx.heads), None


def _no_second(ctx: Any, *_: Any) -> None:
    raise RuntimeError("self_attention has no second gradient")


torch.library.register_autograd("fastguide::self_attention", _backward, setup_context=_setup)
torch.library.register_autograd("fastguide::self_attention_backward", _no_second)


@torch.library.register_fake("fastguide::self_attention")
def _self_attention_fake(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    rows, count, channels = qkv.shape
    lse = qkv.new_empty((rows, heads, count), dtype=torch.float32)
    return qkv.new_empty((rows, count, channels // 3)), lse


@torch.library.register_fake("fastguide::self_attention_backward")
def _self_attention_backward_fake(
    outward: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, heads: int
) -> Tensor:
    return torch.empty_like(qkv)
