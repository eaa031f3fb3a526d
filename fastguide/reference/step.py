"""Guidance, prediction and solver as one row of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastguide.table import Column, Extra, matrix


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
