"""group_norm_backward on the GPU: reads the gradient and the tokens twice and writes once.

The slope d of the map at each element is found again from the tokens: sums of d and of d n (n the
normalised token) over a tile of tokens, then over all tiles and the channels of a group, then
`inverse (gamma d - mean(gamma d) - n mean(gamma d n))`. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastguide.kernels.group_norm import (
    affine,
    lie,
    place,
    sigmoid,
    some_tiles,
    statistics,
    tile_of,
    tokens,
)


@triton.jit
def slopes_kernel(
    sum_ptr,
    product_ptr,
    outward_ptr,
    x_ptr,
    mean_ptr,
    inverse_ptr,
    gamma_ptr,
    beta_ptr,
    gamma_row,
    beta_row,
    count,
    channels,
    groups,
    SILU: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # where: a tile of tokens of some channels
    tile, row, start, c = place(count, channels, TOKENS, WIDTH)

    # load
    outward, _ = tokens(outward_ptr, row, start, c, count, channels, TOKENS)
    x, _ = tokens(x_ptr, row, start, c, count, channels, TOKENS)
    mean, inverse = statistics(mean_ptr, inverse_ptr, row, c, channels, groups)
    gamma, beta = affine(gamma_ptr, beta_ptr, gamma_row, beta_row, row, c, channels)

    # maths: d is zero where outward is, past the last token
    n = (x - mean[None, :]) * inverse[None, :]
    d = slope(outward, n, gamma, beta, SILU)

    # store
    at = tile * channels + c
    tl.store(sum_ptr + at, tl.sum(d, 0), mask=c < channels)
    tl.store(product_ptr + at, tl.sum(d * n, 0), mask=c < channels)


@triton.jit
def slope_sums_kernel(
    of_gamma_ptr,
    of_beta_ptr,
    along_ptr,
    constant_ptr,
    sums_ptr,
    products_ptr,
    gamma_ptr,
    gamma_row,
    count,
    channels,
    groups,
    elements,
    TOKENS: tl.constexpr,
    TILES: tl.constexpr,
    SIZE: tl.constexpr,
):
    # where: a group of a row
    row, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    tiles, size = tl.cdiv(count, TOKENS), channels // groups
    c = group * size + tl.arange(0, SIZE)
    inside = c < group * size + size
    sums_ptr += row * tiles * channels
    products_ptr += row * tiles * channels

    # load and maths
    sums = tl.zeros([TILES, SIZE], tl.float32)
    products = tl.zeros([TILES, SIZE], tl.float32)
    for start in range(0, tiles, TILES):
        some, _, at, mask = some_tiles(sums_ptr, start, c, inside, count, channels, TOKENS, TILES)
        sums += some
        products += tl.load(products_ptr + at, mask=mask, other=0.0)
    of_beta, of_gamma = tl.sum(sums, 0), tl.sum(products, 0)
    gamma = tl.load(gamma_ptr + row * gamma_row + c, mask=inside, other=0.0)

    # store
    tl.store(of_gamma_ptr + row * channels + c, of_gamma, mask=inside)
    tl.store(of_beta_ptr + row * channels + c, of_beta, mask=inside)
    tl.store(along_ptr + tl.program_id(0), tl.sum(gamma * of_gamma, 0) / elements)
    tl.store(constant_ptr + tl.program_id(0), tl.sum(gamma * of_beta, 0) / elements)


@triton.jit
def gradient_kernel(
    out_ptr,
    outward_ptr,
    x_ptr,
    mean_ptr,
    inverse_ptr,
    along_ptr,
    constant_ptr,
    gamma_ptr,
    beta_ptr,
    gamma_row,
    beta_row,
    count,
    channels,
    groups,
    SILU: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # where: a tile of tokens of some channels
    _, row, start, c = place(count, channels, TOKENS, WIDTH)

    # load
    outward, inside = tokens(outward_ptr, row, start, c, count, channels, TOKENS)
    x, _ = tokens(x_ptr, row, start, c, count, channels, TOKENS)
    mean, inverse = statistics(mean_ptr, inverse_ptr, row, c, channels, groups)
    along, constant = statistics(along_ptr, constant_ptr, row, c, channels, groups)
    gamma, beta = affine(gamma_ptr, beta_ptr, gamma_row, beta_row, row, c, channels)

    # maths
    n = (x - mean[None, :]) * inverse[None, :]
    d = slope(outward, n, gamma, beta, SILU)
    out = inverse[None, :] * (gamma[None, :] * d - constant[None, :] - n * along[None, :])

    # store
    at = lie(out_ptr, row, start, c, count, channels, TOKENS)
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def slope(outward, n, gamma, beta, SILU: tl.constexpr):
    """`outward`, times the slope of SiLU at `z = gamma n + beta` where there is one."""
    if SILU:
        z = gamma[None, :] * n + beta[None, :]
        share = sigmoid(z)
        outward = outward * (share + share * (z - z * share))
    return outward


def group_norm_backward(
    outward: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    gamma: Tensor,
    beta: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch on `x` [rows, N, C]; the gradients of x, gamma and beta, the latter fp32 `[rows, C]`.

    See fastguide.ops.group_norm for the arguments, and fastguide.kernels.group_norm for `mean` and
    `inverse`.
    """
    (rows, count, channels), groups = x.shape, mean.shape[1]
    out, options = torch.empty_like(x), {"dtype": torch.float32, "device": x.device}
    of_gamma, of_beta = torch.empty(2, rows, channels, **options)
    if rows == 0:
        return out, of_gamma, of_beta
    tile, each, tiles, programs = tile_of(x, groups, "group_norm_backward")
    sums, products = torch.empty(2, rows, tiles, channels, **options)
    along, constant = torch.empty(2, rows, groups, **options)
    affine = (gamma, beta, gamma.stride(0), beta.stride(0), count, channels, groups)
    with torch.cuda.device_of(x):
        slopes_kernel[(programs,)](
            *(sums, products, outward, x, mean, inverse, *affine), SILU=silu, **tile
        )
        slope_sums_kernel[(rows * groups,)](
            *(of_gamma, of_beta, along, constant, sums, products, gamma, gamma.stride(0)),
            *(count, channels, groups, float(count * channels // groups)),
            **each,
            num_warps=4,
        )
        gradient_kernel[(programs,)](
            *(out, outward, x, mean, inverse, along, constant, *affine), SILU=silu, **tile
        )
    return out, of_gamma, of_beta
