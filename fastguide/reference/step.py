"""Guidance, prediction and solver as one row of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastguide.ops.table import Column, Extra, matrix


def delta_of(positive: Tensor, branch: Tensor, given: bool, factor: Tensor | None = None) -> Tensor:
    """f (p_0 - p_k), or f p_k where the branch is the delta itself, in the dtype of p_0."""
    delta = branch.to(positive.dtype) if given else positive - branch.to(positive.dtype)
    return delta if factor is None else factor.to(positive.dtype) * delta


def combine(
    x: Tensor,
    branches: Sequence[Tensor],
    weights: Tensor,
    row: Tensor,
    deltas: int = 0,
    factor: Tensor | None = None,
    factored: int = 0,
) -> Tensor:
    """The guided denoised image before any clamp, in the dtype of `x` `[B, ...]`; see step."""
    positive = branches[0].to(x.dtype)
    w = weights.to(x.dtype).reshape(*weights.shape, *[1] * (x.ndim - 1))
    guided = w[:, 1] * positive
    for k in range(1, len(branches)):
        f = factor if factored >> k & 1 else None
        guided = guided + w[:, 1 + k] * delta_of(positive, branches[k], bool(deltas >> k & 1), f)
    return w[:, 0] * row[Column.OF_X] * x + row[Column.OF_PREDICTION] * guided


def step(
    state: Tensor,
    branches: Sequence[Tensor],
    weights: Tensor,
    row: Tensor,
    noise: Tensor | None = None,
    variance: Tensor | None = None,
    bound: Tensor | None = None,
    extra: int = Extra.NONE,
    deltas: int = 0,
    factor: Tensor | None = None,
    factored: int = 0,
) -> tuple[Tensor, Tensor]:
    """One update; returns (new state, next network input before its cast), both like `state`.

    Args:
        state: `[slots, B, ...]`, slot 0 is x.
        branches: the active predictions, `[B, ...]` each, the positive one first; may be empty.
        weights: `[B, 1 + K]` or `[1, 1 + K]`: w_x, w_0, w_1 ...
        row: one row of the coefficient table (`fastguide.ops.table`), `[width]`; or `[width, B, 1,
            ...]`, a row for each sample, which broadcasts against samples.
        noise: `[B, ...]` or None.
        variance: `[B, ...]` or None: noise is scaled by `exp(SPREAD variance)`.
        bound: `[B]` or None: the denoised image is clamped to +-bound, then divided by it.
        extra: which image is the last source of the matrix.
        deltas, factor, factored: as in `fastguide.ops.step`.
    """
    x = state[0]
    denoised = unclamped = negative = torch.zeros_like(x)
    if branches:
        unclamped = combine(x, branches, weights, row, deltas, factor, factored)
        positive = branches[0].to(x.dtype)
        other = positive
        if len(branches) > 1:
            other = positive - delta_of(positive, branches[1], bool(deltas >> 1 & 1))
        negative = row[Column.OF_X] * x + row[Column.OF_PREDICTION] * other
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
