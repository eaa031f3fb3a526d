"""group_norm against torch's group_norm, scale, shift and SiLU, on channels-last maps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastguide import ops

GROUPS = 32
LIMIT = 0.75  # of torch's time
SHAPES = [(4, 64, 32, 32), (32, 64, 28, 28), (4, 320, 16, 16)]


def make(shape, dtype, grad):
    rows, channels = shape[:2]
    maps = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
    return maps.requires_grad_(grad), torch.rand(rows, channels) + 0.5, torch.randn(rows, channels)


def plain(maps, gamma, beta):
    out = F.group_norm(maps, GROUPS, eps=1e-5)
    gamma, beta = (t.to(maps.dtype)[:, :, None, None] for t in (gamma, beta))
    return F.silu(torch.addcmul(beta, out, gamma))


def fused(maps, gamma, beta):
    tokens = maps.flatten(2).transpose(1, 2)
    out = ops.group_norm(tokens, gamma, beta, GROUPS, 1e-5, True)
    return out.transpose(1, 2).unflatten(2, maps.shape[2:])


def backward(f, maps, gamma, beta, outward):
    return torch.autograd.grad(f(maps, gamma, beta), maps, outward)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(ratio, shape, dtype, request):
    case = make(shape, dtype, False)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(fused(*case), plain(*case), rtol=tolerance, atol=tolerance)
    name = f"group_norm {list(shape)}, {request.node.callspec.id.split('-')[-1]}"
    ratio(
        f"{name}, against torch's with scale, shift and SiLU",
        lambda: fused(*case),
        lambda: plain(*case),
        limit=LIMIT,
        rounds=41,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(ratio, shape, dtype, request):
    """The gradient of the map, as guidance needs it."""
    case = make(shape, dtype, True)
    outward = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    got, want = (backward(f, *case, outward) for f in (fused, plain))
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    name = f"group_norm {list(shape)}, {request.node.callspec.id.split('-')[-1]}"
    ratio(
        f"{name}, forward and backward, against torch's with scale, shift and SiLU",
        lambda: backward(fused, *case, outward),
        lambda: backward(plain, *case, outward),
        limit=LIMIT,
        rounds=41,
    )
