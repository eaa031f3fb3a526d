"""Group normalisation of channels-last feature maps, with its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastguide._C  # noqa: F401  (registers the schema)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def group_norm(
    tokens: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor:
    """`gamma (x - mean) / sqrt(variance + eps) + beta`, then SiLU if asked: the maths of
    `fastguide.reference.group_norm`, in fp32 and rounded once.

    It has a gradient, but no second one. For it, the tokens are kept and what is here `[rows, C]`.

    Args:
        tokens: `[rows, N, C]`, fp32, bf16 or fp16, contiguous: a channels-last map.
        gamma, beta: fp32 `[rows, C]`; channels lie one after the other, rows at any stride, so that
            one row may be expanded to all.
        groups: of channels that have one mean and variance; divides C.
        eps: above 0.

    Returns:
        As tokens; on one device the same to the bit for a row, whatever the other rows are.

    Raises:
        ValueError: a shape, dtype, device, layout or number is not as above.
    """
    _check(tokens, gamma, beta, groups, eps)
    return torch.ops.fastguide.group_norm(tokens, gamma, beta, groups, eps, silu)[0]


def _check(tokens: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float) -> None:
    if tokens.ndim != 3 or tokens.dtype not in _DTYPES or not tokens.is_contiguous():
        raise ValueError(
            f"tokens is {tokens.dtype} of shape {tuple(tokens.shape)} and strides "
            f"{tokens.stride()}, but it should be contiguous fp32, bf16 or fp16 [rows, N, C]"
        )
    rows, count, channels = tokens.shape
    if count < 1:
        raise ValueError(f"tokens.shape is {tuple(tokens.shape)}, but N should be 1 or more")
    for name, one in (("gamma", gamma), ("beta", beta)):
        if (
            one.shape != (rows, channels)
            or one.dtype != torch.float32
            or one.device != tokens.device
            or (one.stride(1) != 1 and channels > 1)
        ):
            raise ValueError(
                f"{name} is {one.dtype} of shape {tuple(one.shape)} and strides {one.stride()} on "
                f"{one.device}, but it should be fp32 {(rows, channels)} on {tokens.device}, with "
                "channels one after the other"
            )
    if groups < 1 or channels % groups:
        raise ValueError(f"groups is {groups}, but it should divide the {channels} channels")
    if not eps > 0.0:
        raise ValueError(f"eps is {eps}, but it should be above 0")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tokens, gamma, beta, _, _, ctx.silu = inputs
    _, mean, inverse = output
    ctx.mark_non_differentiable(mean, inverse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(tokens, mean, inverse, gamma, beta)


def _backward(ctx: Any, outward: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    found: tuple[Tensor | None, ...] = (None, None, None)
    if outward is not None:
        found = torch.ops.fastguide.group_norm_backward(
            outward.contiguous(), *ctx.saved_tensors, ctx.silu
        )
    return *found, None, None, None


def _no_second(ctx: Any, *_: Any) -> None:
    raise RuntimeError("group_norm has no second gradient")


torch.library.register_autograd("fastguide::group_norm", _backward, setup_context=_setup)
torch.library.register_autograd("fastguide::group_norm_backward", _no_second)


@torch.library.register_fake("fastguide::group_norm")
def _group_norm_fake(
    tokens: Tensor, gamma: Tensor, beta: Tensor, groups: int, *_: Any
) -> tuple[Tensor, ...]:
    statistics = gamma.new_empty((tokens.shape[0], groups))
    return torch.empty_like(tokens), statistics, torch.empty_like(statistics)


@torch.library.register_fake("fastguide::group_norm_backward")
def _group_norm_backward_fake(
    outward: Tensor, tokens: Tensor, mean: Tensor, inverse: Tensor, gamma: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    of_gamma = gamma.new_empty(gamma.shape)
    return torch.empty_like(tokens), of_gamma, torch.empty_like(of_gamma)


@torch.library.impl("fastguide::group_norm", "CUDA")
def _group_norm_cuda(*arguments: Any) -> tuple[Tensor, ...]:
    from fastguide.kernels.group_norm import group_norm as launch

    return launch(*arguments)


@torch.library.impl("fastguide::group_norm_backward", "CUDA")
def _group_norm_backward_cuda(*arguments: Any) -> tuple[Tensor, ...]:
    from fastguide.kernels.group_norm_backward import group_norm_backward as launch

    return launch(*arguments)
