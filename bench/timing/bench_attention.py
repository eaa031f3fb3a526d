"""Attention without its matrix: against PyTorch's attention with a dense mask, and the matrix
itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastguide import ops, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_identity_attention(ratio, dtype):
    """1,024 image tokens that see themselves and 77 text tokens, 8 heads of 64."""
    tokens, keys, heads, dim = 1024, 77, 8, 64
    q, k, v = torch.randn(1, tokens, 3, heads, dim).to(dtype).permute(2, 0, 3, 1, 4)
    context_k, context_v = torch.randn(1, keys, 2, heads, dim).to(dtype).permute(2, 0, 3, 1, 4)
    all_k, all_v = torch.cat([k, context_k], 2), torch.cat([v, context_v], 2)
    own = torch.eye(tokens, dtype=torch.bool)
    mask = torch.cat([own, torch.ones(tokens, keys, dtype=torch.bool)], 1)

    def ours():
        return ops.identity_attention(q, k, v, context_k, context_v)

    def dense():
        return F.scaled_dot_product_attention(q, all_k, all_v, attn_mask=mask)

    error = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(ours(), dense(), rtol=error, atol=error)
    name = "fp32" if dtype == torch.float32 else "bf16"
    ratio(f"identity_attention, {name}, against a dense mask", ours, dense, limit=1 / 4, rounds=41)


def test_attention_colsum(ratio):
    """1,024 tokens, 8 heads of 64, against the matrix of all scores."""
    q, k = torch.randn(2, 1, 8, 1024, 64)

    def ours():
        return ops.attention_colsum(q, k)

    def matrix():
        return reference.attention_colsum(q, k, 0.125)

    torch.testing.assert_close(ours(), matrix())
    ratio("attention_colsum, fp32, against the matrix", ours, matrix, rounds=41)
