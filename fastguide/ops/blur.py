"""Gaussian blur along a grid of tokens or pixels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import fastguide._C  # noqa: F401  (registers the schema)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def blur(
    x: Tensor, sigma: float | Tensor, grid: tuple[int, int], kernel_size: int | None = None
) -> Tensor:
    """Blur the tokens of `x` along their grid: the maths of `fastguide.reference.blur`.

    Separable, reflect padding (the edge is not repeated). Published SEG code (arXiv:2408.00760)
    takes a sigma above 9999 for infinite; here only infinity is, and a large one a flat kernel.

    Args:
        x: `[R, N, C]`, fp32, bf16 or fp16, any strides. Fast are channels that lie one after the
            other, and pixels that do (`image.flatten(2).transpose(1, 2)`).
        sigma: in tokens; a float, or fp32 `[R]` for a value per row. 0 is x to the bit, infinity
            the mean over all tokens. A tensor's values are not checked: that would wait for them.
        grid: (height, width); `N = height * width`, row by row.
        kernel_size: None for SEG's rule, the smallest odd number of taps that reaches 3 sigma; or
            an odd number of taps (31 or 9 in SAG). Along an axis of n tokens at most n taps, or
            n + 1 where n is even.

    Returns:
        A new tensor with the dtype of x, dense; pixels lie one after the other where they do in x,
        else channels do.

    Raises:
        ValueError: a shape, dtype, device, sigma or kernel size is not as above.
    """
    _check(x, sigma, grid, kernel_size)
    height, width = grid
    sigmas = sigma if isinstance(sigma, Tensor) else None
    value = 0.0 if isinstance(sigma, Tensor) else float(sigma)
    return torch.ops.fastguide.blur(x, sigmas, value, height, width, kernel_size or 0)


def _check(
    x: Tensor, sigma: float | Tensor, grid: tuple[int, int], kernel_size: int | None
) -> None:
    if x.ndim != 3 or x.dtype not in _DTYPES:
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}, "
            "but it should be fp32, bf16 or fp16 [R, N, C]"
        )
    if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] != x.shape[1]:
        raise ValueError(
            f"grid is {tuple(grid)}, but it should be (height, width) of the {x.shape[1]} tokens "
            f"of x of shape {tuple(x.shape)}"
        )
    if isinstance(sigma, Tensor):
        if (
            sigma.shape != x.shape[:1]
            or sigma.dtype != torch.float32
            or sigma.device != x.device
            or not sigma.is_contiguous()
        ):
            raise ValueError(
                f"sigma is {sigma.dtype} of shape {tuple(sigma.shape)} and strides "
                f"{sigma.stride()} on {sigma.device}, "
                f"but it should be a float, or contiguous fp32 [{x.shape[0]}] on {x.device}"
            )
    elif math.isnan(sigma) or sigma < 0.0:
        raise ValueError(f"sigma is {sigma}, but it should be 0 or more, or infinity")
    if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
        raise ValueError(f"kernel_size is {kernel_size}, but it should be odd, or None")


def dense_like(x: Tensor) -> Tensor:
    """An empty dense tensor in which pixels or channels lie together, as they do in `x`."""
    if x.stride(1) == 1 and x.stride(2) != 1:
        return x.new_empty((x.shape[0], x.shape[2], x.shape[1])).transpose(1, 2)
    return x.new_empty(x.shape)


@torch.library.register_fake("fastguide::blur")
def _blur_fake(x: Tensor, *_: Any) -> Tensor:
    return dense_like(x)


@torch.library.impl("fastguide::blur", "CUDA")
def _blur_cuda(x: Tensor, *arguments: Any) -> Tensor:
    from fastguide.kernels.blur import blur

    out = dense_like(x)
    blur(out, x, *arguments)
    return out
