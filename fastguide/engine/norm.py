"""A guided prediction that is held to the positive one's norm, before its step."""

from __future__ import annotations

import torch
from torch import Tensor

from fastguide.guidance.modifiers import Norm


def combined(
    branches: list[Tensor],
    weights: Tensor,
    deltas: int,
    factor: Tensor | None,
    factored: int,
    outside: int,
    x: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """What the branches of one evaluation add up to, fp32: those that are not `outside`, a mask as
    `deltas` and `factored` are, and those that are, which may be none.

    Args:
        branches, weights, deltas, factor, factored: as `ops.step` takes them.
        x: the state, times what makes it a prediction that denoises to it.
    """
    positive = branches[0].float()
    ones = [1] * (positive.ndim - 1)
    columns = [column.float().view(-1, *ones) for column in weights.unbind(1)]
    inside = columns[1] * positive + (columns[0] - 1.0) * x
    others: Tensor | None = None
    for k, branch in enumerate(branches[1:], 1):
        delta = branch.float() if deltas >> k & 1 else positive - branch.float()
        if factored >> k & 1:
            assert factor is not None
            delta = factor * delta
        delta = columns[1 + k] * delta
        if not outside >> k & 1:
            inside = inside + delta
        else:
            others = delta if others is None else others + delta
    return inside, others


def held_to(how: Norm, positive: Tensor, inside: Tensor, others: Tensor | None) -> Tensor:
    """The guided prediction, its part that is `inside` held to the positive one's norm."""
    guided = how.factor(inside, positive) * inside
    guided = guided if others is None else guided + others
    return guided.to(torch.promote_types(positive.dtype, torch.float32))
