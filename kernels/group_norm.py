"""group_norm on the GPU: reads the tokens twice and writes them once; channels lie across threads.

Moments of each channel over a tile of tokens, then of each group over all tiles, then the map
itself. All moments are of differences to the row's first token, and squares are of differences to a
mean, so that a large mean costs no digits. No atomics: the result is always the same to the bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastguide.kernels.tuning import lookup


@triton.jit
def moments_kernel(
    mean_ptr,
    square_ptr,
    x_ptr,
    count,
    channels,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    # where: a tile of tokens of some channels; `tile` counts those of all rows
    tile, row, start, c = place(count, channels, TOKENS, WIDTH)

    # load
    x, inside = tokens(x_ptr, row, start, c, count, channels, TOKENS)
    first = first_token(x_ptr, row, c, count, channels)

    # maths
    there = tl.minimum(count - start, TOKENS)
    x = tl.where(inside, x - first[None, :], 0.0)
    mean = tl.sum(x, 0) / there
    centred = tl.where(inside, x - mean[None, :], 0.0)

    # store
    at = tile * channels + c
    tl.store(mean_ptr + at, mean, mask=c < channels)
    tl.store(square_ptr + at, tl.sum(centred * centred, 0), mask=c < channels)


@triton.jit
def statistics_kernel(
    mean_ptr,
    inverse_ptr,
    means_ptr,
    squares_ptr,
    x_ptr,
    count,
    channels,
    groups,
    elements,
    eps,
    TOKENS: tl.constexpr,
    TILES: tl.constexpr,
    SIZE: tl.constexpr,
):
    # where: a group of a row
    row, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    tiles, size = tl.cdiv(count, TOKENS), channels // groups
    c = group * size + tl.arange(0, SIZE)
    inside = c < group * size + size
    means_ptr += row * tiles * channels
    squares_ptr += row * tiles * channels

    # maths: the mean over tiles and channels, then squares of the distances to it
    first = tl.load(x_ptr + row * count * channels + c, mask=inside, other=0.0).to(tl.float32)
    base = tl.load(x_ptr + row * count * channels + group * size).to(tl.float32)
    first = first - base
    total = tl.zeros([TILES, SIZE], tl.float32)
    for start in range(0, tiles, TILES):
        mean, there, _, _ = some_tiles(means_ptr, start, c, inside, count, channels, TOKENS, TILES)
        total += there * (first[None, :] + mean)
    centre = tl.sum(tl.sum(total, 0), 0) / elements
    total = tl.zeros([TILES, SIZE], tl.float32)
    for start in range(0, tiles, TILES):
        mean, there, at, mask = some_tiles(
            means_ptr, start, c, inside, count, channels, TOKENS, TILES
        )
        apart = first[None, :] + mean - centre
        total += tl.load(squares_ptr + at, mask=mask, other=0.0) + there * apart * apart
    variance = tl.sum(tl.sum(total, 0), 0) / elements

    # store
    tl.store(mean_ptr + tl.program_id(0), base + centre)
    tl.store(inverse_ptr + tl.program_id(0), 1.0 / tl.sqrt_rn(variance + eps))


@triton.jit
def normalise_kernel(
    out_ptr,
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
    _, row, start, c = place(count, channels, TOKENS, WIDTH)

    # load
    x, inside = tokens(x_ptr, row, start, c, count, channels, TOKENS)
    mean, inverse = statistics(mean_ptr, inverse_ptr, row, c, channels, groups)
    gamma, beta = affine(gamma_ptr, beta_ptr, gamma_row, beta_row, row, c, channels)

    # maths
    out = (x - mean[None, :]) * (gamma * inverse)[None, :] + beta[None, :]
    if SILU:
        out = out * sigmoid(out)

    # store
    at = lie(out_ptr, row, start, c, count, channels, TOKENS)
    tl.store(at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def place(count, channels, TOKENS: tl.constexpr, WIDTH: tl.constexpr):
    """This program's tile among those of all rows, its row, first token, and channels `[WIDTH]`."""
    blocks, tiles = tl.cdiv(channels, WIDTH), tl.cdiv(count, TOKENS)
    tile = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tile % tiles).to(tl.int32) * TOKENS
    c = tl.program_id(0) % blocks * WIDTH + tl.arange(0, WIDTH)
    return tile, tile // tiles, start, c


@triton.jit
def lie(x_ptr, row, start, c, count, channels, TOKENS: tl.constexpr):
    """Where tokens `start ...` of a row are, `[TOKENS, WIDTH]`."""
    x_ptr += (row * count + start) * channels
    return x_ptr + (tl.arange(0, TOKENS)[:, None] * channels + c[None, :])


@triton.jit
def tokens(x_ptr, row, start, c, count, channels, TOKENS: tl.constexpr):
    """Tokens `start ...` of a row in fp32 `[TOKENS, WIDTH]`, and which of them there are."""
    inside = (start + tl.arange(0, TOKENS) < count)[:, None] & (c < channels)[None, :]
    at = lie(x_ptr, row, start, c, count, channels, TOKENS)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32), inside


@triton.jit
def first_token(x_ptr, row, c, count, channels):
    at = row * count * channels + c
    return tl.load(x_ptr + at, mask=c < channels, other=0.0).to(tl.float32)


@triton.jit
def some_tiles(x_ptr, start, c, inside, count, channels, TOKENS: tl.constexpr, TILES: tl.constexpr):
    """x `[TILES, SIZE]` of tiles `start ...`, their numbers of tokens `[TILES, 1]`, 0 past the last
    tile and channel, where they lie, and which of them there are."""
    tile = start + tl.arange(0, TILES)
    there = tl.maximum(tl.minimum(count - tile * TOKENS, TOKENS), 0)
    mask = (there > 0)[:, None] & inside[None, :]
    at = tile.to(tl.int64)[:, None] * channels + c[None, :]
    weight = tl.where(mask, there.to(tl.float32)[:, None], 0.0)
    return tl.load(x_ptr + at, mask=mask, other=0.0), weight, at, mask


@triton.jit
def statistics(mean_ptr, inverse_ptr, row, c, channels, groups):
    """Mean and inverse deviation of the group of each channel."""
    at = row * groups + c // (channels // groups)
    mean = tl.load(mean_ptr + at, mask=c < channels, other=0.0)
    return mean, tl.load(inverse_ptr + at, mask=c < channels, other=0.0)


@triton.jit
def affine(gamma_ptr, beta_ptr, gamma_row, beta_row, row, c, channels):
    """What each channel is scaled and shifted by."""
    gamma = tl.load(gamma_ptr + row * gamma_row + c, mask=c < channels, other=0.0)
    return gamma, tl.load(beta_ptr + row * beta_row + c, mask=c < channels, other=0.0)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


def tile_of(x: Tensor, groups: int, kernel: str) -> tuple[dict[str, int], dict[str, int], int, int]:
    """Sizes of a tile, and of what is added over tiles; number of tiles of a row, and of programs
    that take one each. `x` is `[rows, N, C]`.
    """
    rows, count, channels = x.shape
    settings = lookup(kernel, x.device)
    width = min(settings["WIDTH"], triton.next_power_of_2(channels))
    length = settings["TILE"] // width
    size = triton.next_power_of_2(channels // groups)
    tiles = triton.cdiv(count, length)
    most = max(1, settings["TILE"] // (2 * size))  # two sums at once
    each = {"TOKENS": length, "TILES": min(most, triton.next_power_of_2(tiles)), "SIZE": size}
    tile = {"TOKENS": length, "WIDTH": width, "num_warps": settings["num_warps"]}
    return tile, each, tiles, rows * tiles * triton.cdiv(channels, width)


def group_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch on `x` [rows, N, C]; the result, and fp32 `[rows, groups]`: mean, inverse deviation.

    See fastguide.ops.group_norm for the arguments.
    """
    rows, count, channels = x.shape
    out = torch.empty_like(x)
    mean, inverse = torch.empty(2, rows, groups, dtype=torch.float32, device=x.device)
    if rows == 0:
        return out, mean, inverse
    tile, each, tiles, programs = tile_of(x, groups, "group_norm")
    means, squares = torch.empty(2, rows, tiles, channels, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        moments_kernel[(programs,)](means, squares, x, count, channels, **tile)
        statistics_kernel[(rows * groups,)](
            *(mean, inverse, means, squares, x, count, channels, groups),
            float(count * channels // groups),
            eps,
            **each,
            num_warps=4,
        )
        normalise_kernel[(programs,)](
            *(out, x, mean, inverse, gamma, beta, gamma.stride(0), beta.stride(0)),
            *(count, channels, groups),
            SILU=silu,
            **tile,
        )
    return out, mean, inverse
