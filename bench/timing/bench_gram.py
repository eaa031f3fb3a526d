"""gram against the same products in plain PyTorch, and against copying as many bytes."""

from __future__ import annotations

import pytest
import torch

from fastguide import ops


def make(branches, dtype, batch=16):
    shape = (batch, 4, 128, 128)
    x, base = torch.randn(shape), torch.tensor([1.7, -1.4])
    return x, [torch.randn(shape).to(dtype) for _ in range(branches)], base


def plain(x, branches, base):
    """The vectors of `fastguide.reference.gram` in fp32, their products and their sums."""
    positive, *others = (branch.float() for branch in branches)
    vectors = [positive, base[0] * x + base[1] * positive, *(positive - o for o in others)]
    v = torch.stack([vector.flatten(1) for vector in vectors], 1)
    return torch.cat([v @ v.mT, v.sum(2, keepdim=True)], 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("branches", [2, 6])
def test_gram(ratio, branches, dtype, request):
    case = make(branches, dtype)
    want = plain(*case).double()
    torch.testing.assert_close(ops.gram(*case), want, rtol=1e-4, atol=1.0)
    name = f"gram [16, 4, 128, 128], {branches} branches, {request.node.callspec.id.split('-')[-1]}"
    ratio(
        f"{name}, against plain PyTorch",
        lambda: ops.gram(*case),
        lambda: plain(*case),
        limit=1 / 3,
        rounds=41,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("branches", [2, 6])
def test_bandwidth(ratio, branches, dtype, request):
    """More than fits in the cache. The twin reads half of the bytes that gram reads, and writes as
    many.
    """
    x, tensors, base = make(branches, dtype, 64)
    size = sum(t.numel() * t.element_size() for t in (x, *tensors))
    source = torch.ones(size // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    name = f"gram [64, 4, 128, 128], {branches} branches, {request.node.callspec.id.split('-')[-1]}"
    ratio(
        f"{name}, against copying as many bytes",
        lambda: ops.gram(x, tensors, base),
        lambda: target.copy_(source),
        rounds=41,
    )
