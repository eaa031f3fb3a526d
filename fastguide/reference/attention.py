"""The attention ops in their textbook form: the matrix of all scores, masked and normalised."""

from __future__ import annotations

import torch
from torch import Tensor


def identity_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context_k: Tensor,
    context_v: Tensor,
    scale: float,
    context_mask: Tensor | None = None,
) -> Tensor:
    """Attention of q `[R, heads, N, D]` to k, v and a context `[R, heads, T, D]` in which query i
    sees key i and the context keys where `context_mask` `[R, T]` is True (PAG, Ahn et al. 2024).
    """
    rows, _, queries, _ = q.shape
    keys = context_k.shape[2]
    own = torch.eye(queries, dtype=torch.bool, device=q.device).expand(rows, -1, -1)
    context = q.new_ones(rows, keys, dtype=torch.bool) if context_mask is None else context_mask
    sees = torch.cat([own, context.unsqueeze(1).expand(-1, queries, -1)], 2)
    scores = scale * q @ torch.cat([k, context_k], 2).transpose(-1, -2)
    weights = scores.masked_fill(~sees.unsqueeze(1), -torch.inf).softmax(-1)
    return weights @ torch.cat([v, context_v], 2)


def attention_colsum(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """`[R, M]`: the attention that each key gets, `mean_heads sum_i softmax(scale q k^T)[i, j]`,
    of q `[R, heads, N, D]`, k `[R, heads, M, D]` (SAG, Hong et al. 2023).
    """
    return (scale * q @ k.transpose(-1, -2)).softmax(-1).sum(2).mean(1)


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """`softmax(q k^T / sqrt(D)) v` `[rows, N, width]` of qkv `[rows, N, 3 width]`: q, k and v one
    after the other, each of `heads` heads of D channels (Vaswani et al. 2017).
    """
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q.shape[-1] ** -0.5 * q @ k.transpose(-1, -2)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
