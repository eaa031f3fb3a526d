"""Gaussian blur along a grid of tokens or pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fastguide._C  # noqa: F401  (registers the schema)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


Sigma = float | Sequence[float] | Tensor


def blur(x: Tensor, sigma: Sigma, grid: Sequence[int], kernel_size: int | None = None) -> Tensor:
    """Blur the tokens of `x` along their grid: the maths of `fastguide.reference.blur`.

    Separable, reflect padding (the edge is not repeated). Published SEG code (arXiv:2408.00760)
    takes a sigma above 9999 for infinite; here only infinity is, and a large one a flat kernel.

    Args:
        x: `[R, N, C]`, fp32, bf16 or fp16, any strides. Fast are channels that lie one after the
            other, and pixels that do (`image.flatten(2).transpose(1, 2)`).
        sigma: in tokens; a float, one for each axis, or, of two axes or one, fp32 `[R]` for a
            value per row. 0 leaves an axis as it is, to the bit, and infinity makes it its mean. A
            tensor's values are not checked: that would wait for them.
        grid: (height, width), (frames, height, width) or (length,), whose product is N, the last
            axis the fastest.
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
    size = kernel_size or 0
    if isinstance(sigma, Tensor):
        height, width = (1, *grid)[-2:]
        return torch.ops.fastguide.blur(x, sigma, 0.0, 0.0, height, width, size)
    values = _of_axes(sigma, grid)
    if len(grid) < 3:
        height, width = (1, *grid)[-2:]
        down, across = (values[-1], *values)[-2:]
        return torch.ops.fastguide.blur(x, None, down, across, height, width, size)
    if len(set(values)) == 1 and values[0] in (0.0, math.inf):
        return torch.ops.fastguide.blur(x, None, values[0], values[0], 1, x.shape[1], size)
    frames, height, width = grid
    if values[0] != 0.0:
        along = (values[0], 0.0, frames, height * width, size)
        x = torch.ops.fastguide.blur(x, None, *along)
    if values[1:] == (0.0, 0.0) and values[0] != 0.0:
        return x
    planes, pixels = _planes(x, frames)
    out = torch.ops.fastguide.blur(planes, None, *values[1:], height, width, size)
    if pixels:
        return out.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1).transpose(1, 2)
    return out.reshape(x.shape)


def _planes(x: Tensor, frames: int) -> tuple[Tensor, bool]:
    """Each frame as a row of its own; where pixels lie together, with its channels behind those of
    the frames before it.
    """
    if x.stride(1) == 1 and x.stride(2) != 1:
        planes = x.transpose(1, 2).unflatten(2, (frames, -1)).flatten(1, 2)
        return planes.transpose(1, 2), True
    return x.unflatten(1, (frames, -1)).flatten(0, 1), False


def _of_axes(sigma: float | Sequence[float], grid: Sequence[int]) -> tuple[float, ...]:
    if isinstance(sigma, Sequence):
        return tuple(float(one) for one in sigma)
    return (float(sigma),) * len(grid)


def _check(x: Tensor, sigma: Sigma, grid: Sequence[int], kernel_size: int | None) -> None:
    if x.ndim != 3 or x.dtype not in _DTYPES:
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}, "
            "but it should be fp32, bf16 or fp16 [R, N, C]"
        )
    if not 1 <= len(grid) <= 3 or min(grid) < 1 or math.prod(grid) != x.shape[1]:
        raise ValueError(
            f"grid is {tuple(grid)}, but it should be (height, width) of the {x.shape[1]} tokens "
            f"of x of shape {tuple(x.shape)}, or their (length,), or (frames, height, width)"
        )
    if isinstance(sigma, Tensor):
        if (
            sigma.shape != x.shape[:1]
            or sigma.dtype != torch.float32
            or sigma.device != x.device
            or not sigma.is_contiguous()
            or len(grid) > 2
        ):
            raise ValueError(
                f"sigma is {sigma.dtype} of shape {tuple(sigma.shape)} and strides "
                f"{sigma.stride()} on {sigma.device} for {len(grid)} axes, but it should be a "
                f"float, one for each axis, or for two contiguous fp32 [{x.shape[0]}] on {x.device}"
            )
    else:
        values = _of_axes(sigma, grid)
        if len(values) != len(grid) or any(math.isnan(one) or one < 0.0 for one in values):
            raise ValueError(
                f"sigma is {sigma}, but it should be 0 or more, or infinity, or so for each of the "
                f"{len(grid)} axes"
            )
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
