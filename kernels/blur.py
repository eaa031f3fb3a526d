"""blur on the GPU: along each axis a product with a banded matrix that is made in registers from
sigma. Reads and writes each element once per axis; between the axes it has the dtype of x.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastguide.kernels.tuning import lookup


@triton.jit
def tap(distance, inverse, radius):
    """exp(-distance^2 / 2 sigma^2) up to `radius` and 0 past it; `inverse` is 1 / sigma."""
    t = distance.to(tl.float32) * inverse
    return tl.where(distance <= radius, tl.exp(-0.5 * t * t), 0.0)


@triton.jit
def blur_kernel(
    out_ptr,
    x_ptr,
    sigmas_ptr,
    sigma,
    kernel_size,
    length,
    lanes,
    inner,
    x_strides,
    out_strides,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    LANES: tl.constexpr,
    HALF: tl.constexpr,
):
    # where: BLOCK places along the axis, of LANES lanes of one row; a lane is (outer, inner)
    blocks, runs = tl.cdiv(length, BLOCK), tl.cdiv(lanes, LANES)
    row = (tl.program_id(0) // (blocks * runs)).to(tl.int64)
    start = tl.program_id(0) // runs % blocks * BLOCK
    lane = tl.program_id(0) % runs * LANES + tl.arange(0, LANES)
    i = start + tl.arange(0, BLOCK)
    x_ptr += row * x_strides[0]
    x_lane = lane_offset(x_strides, lane.to(INDEX), inner)
    out_ptr += row * out_strides[0]
    out_at = i.to(INDEX)[:, None] * out_strides[1]
    out_at += lane_offset(out_strides, lane.to(INDEX), inner)
    inside = (i < length)[:, None] & (lane < lanes)[None, :]

    # load: sigma, hence the taps (fastguide/reference/blur.py); infinity weighs all places alike
    if sigmas_ptr is not None:
        sigma = tl.load(sigmas_ptr + row)
    sigma = tl.where(sigma >= 0.0, sigma, float("nan"))
    inverse = 1.0 / sigma
    inverse = tl.where(inverse > 1e30, 1e30, inverse)  # 0 * 1e30 is 0, and exp(-1e60) is 0 too
    limit = length + 1 - length % 2
    reach = tl.ceil(6.0 * sigma)
    size = tl.where(reach < limit, reach, limit).to(tl.int32)
    size = tl.where(kernel_size > 0, kernel_size, size + 1 - size % 2)
    radius = tl.minimum(tl.minimum(size, limit) // 2, length - 1)
    flat = sigma == float("inf")
    radius = tl.where(flat, length, tl.where(sigma == 0.0, 0, radius))
    t = tl.arange(0, HALF)
    total = 2.0 * tl.sum(tl.where(t > 0, tap(t, inverse, radius), 0.0)) + 1.0
    scale = 1.0 / tl.where(flat, length.to(tl.float32), total)

    # maths: T[i, j] = w(j - i) + [j > 0] w(-i - j) + [j < n - 1] w(2 (n - 1) - i - j)
    if radius == 0:  # x to the bit
        x_at = i.to(INDEX)[:, None] * x_strides[1] + x_lane
        tl.store(out_ptr + out_at, tl.load(x_ptr + x_at, mask=inside), mask=inside)
    else:
        blurred = tl.zeros([BLOCK, LANES], tl.float32)
        first = tl.maximum(start - radius, 0) // 16 * 16
        last = tl.minimum(start + BLOCK + radius, length)
        for place in range(first, last, STEP):
            j = place + tl.arange(0, STEP)
            there = (j < last)[:, None] & (lane < lanes)[None, :]
            x_at = j.to(INDEX)[:, None] * x_strides[1] + x_lane
            x = tl.load(x_ptr + x_at, mask=there, other=0.0)
            here, away = i[:, None], j[None, :]
            left = tl.where(away > 0, tap(here + away, inverse, radius), 0.0)
            end = length - 1
            right = tl.where(away < end, tap(2 * end - here - away, inverse, radius), 0.0)
            weights = tap(tl.abs(here - away), inverse, radius) + left + right
            weights = tl.where(flat, 1.0, weights)
            blurred = product(weights, x, blurred)
        # store
        tl.store(out_ptr + out_at, (blurred * scale).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def lane_offset(strides, lane, inner):
    """Where lanes begin in a row, [1, LANES]; `strides` are those of (row, place, outer, inner)."""
    return (lane // inner * strides[2] + lane % inner * strides[3])[None, :]


@triton.jit
def product(weights, x, blurred):
    """blurred + weights @ x on tensor cores; fp32 weights, split in two where x has 16 bits."""
    if x.dtype == tl.float32:
        return tl.dot(weights, x, blurred, input_precision="tf32x3")
    high = weights.to(x.dtype)
    low = (weights - high.to(tl.float32)).to(x.dtype)
    return tl.dot(high, x, tl.dot(low, x, blurred))


def blur(
    out: Tensor,
    x: Tensor,
    sigmas: Tensor | None,
    down: float,
    across: float,
    height: int,
    width: int,
    kernel_size: int,
) -> None:
    """Launch on `x` `[R, N, C]`, one kernel per axis; see fastguide.ops.blur for the arguments."""
    values = (down, across)
    if sigmas is None and down == across and (down == 0.0 or down == math.inf):
        out.copy_(x if down == 0.0 else x.mean(1, keepdim=True, dtype=torch.float32))
        return
    lengths = enumerate((height, width))
    axes = [a for a, n in lengths if n > 1 and (sigmas is not None or values[a] != 0.0)]
    if not axes or out.numel() == 0:
        out.copy_(x)
        return
    pixels = out.stride(1) == 1 and out.stride(2) != 1
    small = max(row_extent(x), row_extent(out)) < 2**31
    views = [x, *[torch.empty_like(out) for _ in axes[1:]], out]
    for axis, source, target in zip(axes, views, views[1:], strict=False):
        length, other = (height, width) if axis == 0 else (width, height)
        channels = x.shape[2]
        settings = lookup("blur", x.device, length=length, pixels=pixels, bytes=x.element_size())
        block = min(settings["BLOCK"], max(16, triton.next_power_of_2(length)))
        lanes, together = other * channels, settings["BYTES"] // x.element_size()
        grid = (x.shape[0] * triton.cdiv(length, block) * triton.cdiv(lanes, together),)
        with torch.cuda.device_of(x):
            blur_kernel[grid](
                target,
                source,
                sigmas,
                values[axis],
                kernel_size,
                length,
                lanes,
                other if pixels else channels,
                strides(source, axis, width, pixels),
                strides(target, axis, width, pixels),
                INDEX=tl.int32 if small else tl.int64,
                BLOCK=block,
                STEP=min(settings["STEP"], block),
                LANES=together,
                HALF=triton.next_power_of_2(length // 2 + 1),
                enable_fp_fusion=True,  # Triton's default; said here, as later versions change it
                num_warps=settings["num_warps"],
                num_stages=settings["num_stages"],
            )


def strides(x: Tensor, axis: int, width: int, pixels: bool) -> tuple[int, int, int, int]:
    """Those of (row, place along the axis, outer, inner); what lies together is the inner."""
    down, across = width * x.stride(1), x.stride(1)
    place, other = (down, across) if axis == 0 else (across, down)
    lane = (x.stride(2), other) if pixels else (other, x.stride(2))
    return (x.stride(0), place, *lane)


def row_extent(x: Tensor) -> int:
    """How far from its first element the offsets of a row reach, masked ones included."""
    _, tokens, channels = x.shape
    return 2 * (tokens * x.stride(1) + channels * x.stride(2)) + 2**16
