"""Every op in plain PyTorch, in the precision of its inputs: the definition that kernels are held
to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastguide.table import Column, Extra, matrix

_LOW32 = 0xFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011) on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        high0, low0 = (product0 >> 32) & _LOW32, product0 & _LOW32
        high1, low1 = (product1 >> 32) & _LOW32, product1 & _LOW32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return [c0, c1, c2, c3]


def noise(seeds: Tensor, evaluation: int, numel: int) -> Tensor:
    """Standard normals fp64 `[B, numel]` by (seed, evaluation, element): see csrc/philox.h."""
    blocks = torch.arange((numel + 3) // 4, device=seeds.device)
    shape = (seeds.numel(), blocks.numel())
    zero = torch.zeros(shape, dtype=torch.int64, device=seeds.device)
    counter = [zero + (blocks & _LOW32), zero + (blocks >> 32), zero + evaluation, zero]
    column = seeds.unsqueeze(1)
    words = philox4x32(counter, [zero + (column & _LOW32), zero + ((column >> 32) & _LOW32)])
    top = [word >> 8 for word in words]
    out = []
    for radius_word, angle_word in ((top[0], top[1]), (top[2], top[3])):
        # u is formed in fp32, where 2^24 - 1 + 1/2 rounds: the kernels' uniform, bit for bit
        u = (radius_word.float() + 0.5) * 2.0**-24
        radius = (-2.0 * u.double().log()).sqrt()
        angle = angle_word.double() * (2.0 * math.pi * 2.0**-24)
        out += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(out, dim=2).flatten(1)[:, :numel]


def combine(x: Tensor, branches: Sequence[Tensor], weights: Tensor, row: Tensor) -> Tensor:
    """The guided denoised image before any clamp, in the dtype of `x` `[B, ...]`; see step."""
    positive, *others = (branch.to(x.dtype) for branch in branches)
    w = weights.to(x.dtype).reshape(*weights.shape, *[1] * (x.ndim - 1))
    guided = w[:, 0] * positive
    for k, other in enumerate(others, 1):
        guided = guided + w[:, k] * (positive - other)
    return row[Column.OF_X] * x + row[Column.OF_PREDICTION] * guided


def step(
    state: Tensor,
    branches: Sequence[Tensor],
    weights: Tensor,
    row: Tensor,
    noise: Tensor | None = None,
    variance: Tensor | None = None,
    bound: Tensor | None = None,
    extra: int = Extra.NONE,
) -> tuple[Tensor, Tensor]:
    """One update; returns (new state, next network input before its cast), both like `state`.

    Args:
        state: `[slots, B, ...]`, slot 0 is x.
        branches: the active predictions, `[B, ...]` each, the positive one first; may be empty.
        weights: `[B, K]` or `[1, K]`.
        row: one row of the coefficient table (`fastguide.table`).
        noise: `[B, ...]` or None.
        variance: `[B, ...]` or None: noise is scaled by `exp(SPREAD variance)`.
        bound: `[B]` or None: the denoised image is clamped to +-bound, then divided by it.
        extra: which image is the last source of the matrix.
    """
    x = state[0]
    denoised = unclamped = negative = torch.zeros_like(x)
    if branches:
        unclamped = combine(x, branches, weights, row)
        first_other = branches[min(1, len(branches) - 1)]
        negative = combine(x, [first_other], torch.ones_like(weights), row)
        denoised = unclamped.clamp(row[Column.LOW], row[Column.HIGH])
        if bound is not None:
            column = bound.to(state.dtype).reshape(-1, *[1] * (x.ndim - 1))
            denoised = denoised.clamp(-column, column) / column
    drawn = torch.zeros_like(x) if noise is None else noise.to(state.dtype)
    if variance is not None:
        drawn = drawn * (row[Column.SPREAD] * variance.to(state.dtype)).exp()
    last = {Extra.UNCLAMPED: unclamped, Extra.NEGATIVE: negative}.get(
        Extra(extra), torch.zeros_like(x)
    )
    sources = [*state, denoised, drawn, last]
    new = torch.stack(
        [sum(c * source for c, source in zip(cs, sources, strict=True)) for cs in matrix(row)]
    )
    return new, row[Column.INPUT_SCALE] * new[0]
