"""self_attention of a packed projection against torch's attention on views of it, in fp32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastguide import ops

# rows, tokens, heads, channels of a head; those of a U-Net's levels, a DiT's, and of large pictures
SIZES = [(16, 64, 3, 64), (16, 256, 2, 64), (32, 49, 4, 32), (4, 256, 6, 72), (1, 4096, 2, 80)]


def make(size, grad):
    rows, tokens, heads, dim = size
    qkv = torch.randn(rows, tokens, 3 * heads * dim, requires_grad=grad)
    return qkv, torch.randn(rows, tokens, heads * dim)


def plain(qkv, heads):
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def backward(f, qkv, heads, outward):
    return torch.autograd.grad(f(qkv, heads), qkv, outward)[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward(ratio, size):
    (qkv, _), heads = make(size, False), size[2]
    torch.testing.assert_close(ops.self_attention(qkv, heads), plain(qkv, heads))
    ratio(
        f"self_attention {list(size)}, against torch's",
        lambda: ops.self_attention(qkv, heads),
        lambda: plain(qkv, heads),
        limit=0.9,
        rounds=41 if size[1] < 1000 else 7,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward_and_backward(ratio, size):
    (qkv, outward), heads = make(size, True), size[2]
    got, want = (backward(f, qkv, heads, outward) for f in (ops.self_attention, plain))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    ratio(
        f"self_attention {list(size)}, forward and backward, against torch's",
        lambda: backward(ops.self_attention, qkv, heads, outward),
        lambda: backward(plain, qkv, heads, outward),
        limit=0.85,
        rounds=41 if size[1] < 1000 else 7,
    )
