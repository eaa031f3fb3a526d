"""Inner products of the vectors that projections need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastguide.reference.step import delta_of


def gram(
    x: Tensor,
    branches: Sequence[Tensor],
    base: Tensor,
    deltas: int = 0,
    factor: Tensor | None = None,
    factored: int = 0,
) -> Tensor:
    """`[B, n, n + 1]`: `<v_i, v_j>`, and in the last column the sum of v_i, in the dtype of x. The
    n = K + 1 vectors are p_0, x0 = a x + b p_0, delta_1 ... delta_{K-1} of a sample.

    Args:
        x: `[B, ...]`.
        branches: K predictions `[B, ...]`, the positive one first.
        base: `[2]`: a, b; or `[B, 2]`, those of each sample.
        deltas, factor, factored: as in `fastguide.ops.gram`.
    """
    positive = branches[0].to(x.dtype)
    a, b = (one.reshape(-1, *[1] * (x.ndim - 1)) for one in base.to(x.dtype).unbind(-1))
    vectors = [positive, a * x + b * positive]
    for k in range(1, len(branches)):
        f = factor if factored >> k & 1 else None
        vectors.append(delta_of(positive, branches[k], bool(deltas >> k & 1), f))
    v = torch.stack([vector.flatten(1) for vector in vectors], 1)
    return torch.cat([v @ v.mT, v.sum(2, keepdim=True)], 2)
