"""Self-attention of a packed projection, with its gradient: csrc/cpu/self_attention.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastguide._C  # noqa: F401  (registers the schema)
from fastguide.ops.heads import MAX_DIM

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """`softmax(q k^T / sqrt(D)) v` `[rows, N, width]`, in fp32 and rounded once.

    It is fastguide's kernel on the CPU, with a gradient, but no second one; torch's in fp64, on
    GPUs, and where a processor multiplies matrices of bf16. For the gradient, qkv and the result
    are kept, and one number a query and head.

    Args:
        qkv: `[rows, N, 3 width]`, floating, contiguous: q, k and v one after the other, each of
            `heads` heads of D <= 256 channels.
        heads: divides width.

    Returns:
        As qkv; with fastguide's kernel the same to the bit for a row, whatever the other rows are.

    Raises:
        ValueError: a shape, dtype or layout is not as above, or `heads` is not.
    """
    _check(qkv, heads)
    if _is_torchs(qkv):
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return torch.ops.fastguide.self_attention(qkv, heads)[0]


def _is_torchs(qkv: Tensor) -> bool:
    """Where torch's kernels are what there is, or faster: on GPUs, in fp64, and in bf16 and fp16 on
    processors that multiply matrices of these (AMX).

    Elsewhere ours take 0.44 to 0.73 of torch's time, and 0.1 to 0.66 with the backward pass: fp32
    and bf16, N from 49 to 4,096, D from 32 to 80, on one core of a Zen 5.
    """
    if qkv.device.type != "cpu" or qkv.dtype == torch.float64:
        return True
    return qkv.dtype != torch.float32 and _multiplies_half_types()


def _multiplies_half_types() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


# what torch.compiler.assume_constant_result does, which would import the whole compiler here
_multiplies_half_types._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _check(qkv: Tensor, heads: int) -> None:
    if qkv.ndim != 3 or qkv.dtype not in _DTYPES or not qkv.is_contiguous():
        raise ValueError(
            f"qkv is {qkv.dtype} of shape {tuple(qkv.shape)} and strides {qkv.stride()}, but it "
            "should be contiguous fp32, bf16, fp16 or fp64 [rows, N, 3 width]"
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
