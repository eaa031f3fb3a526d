"""Group normalisation with an affine map of its own for each row."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def group_norm(
    tokens: Tensor,
    gamma: Tensor,
    beta: Tensor,
    groups: int,
    eps: float = 1e-5,
    silu: bool = False,
) -> Tensor:
    """`gamma (x - mean) / sqrt(variance + eps) + beta` `[rows, N, C]`, then SiLU if asked, in the
    dtype of tokens; mean and variance are those of a group of channels of a row (Wu and He 2018).

    Args:
        tokens: `[rows, N, C]`.
        gamma, beta: `[rows, C]`.
    """
    grouped = tokens.unflatten(2, (groups, -1))
    centred = grouped - grouped.mean((1, 3), keepdim=True)
    variance = centred.square().mean((1, 3), keepdim=True)
    normal = (centred * (variance + eps).rsqrt()).flatten(2)
    out = gamma.unsqueeze(1).to(tokens.dtype) * normal + beta.unsqueeze(1).to(tokens.dtype)
    return F.silu(out) if silu else out
