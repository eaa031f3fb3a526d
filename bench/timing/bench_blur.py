"""blur against torch's depthwise convolution: the dense kernel as published, and two passes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastguide import ops
from fastguide.reference.blur import taps


def as_image(x, grid):
    """Tokens [1, N, C] as [1, C, H, W], in memory too: what the convolutions work on."""
    return x.transpose(1, 2).unflatten(2, grid).contiguous()


def dense(image, down, across):
    """The 2-D kernel at once."""
    channels, high, wide = image.shape[1], down.numel() // 2, across.numel() // 2
    padded = F.pad(image, (wide, wide, high, high), mode="reflect")
    weight = torch.outer(down, across).expand(channels, 1, -1, -1)
    return F.conv2d(padded, weight, groups=channels)


def separable(image, down, across):
    """A column of taps, then a row of them."""
    one = torch.ones(1)
    return dense(dense(image, down, one), one, across)


@pytest.mark.parametrize("sigma", [10.0, 1.0])
@pytest.mark.parametrize("grid", [(64, 64), (32, 32)], ids=str)
@pytest.mark.parametrize("twin", [dense, separable], ids=lambda twin: twin.__name__)
def test_tokens(ratio, grid, sigma, twin):
    """Queries of one row, [1, N, 1280]; the twin's change of layout is not timed."""
    x = torch.randn(1, grid[0] * grid[1], 1280)
    image, kernels = as_image(x, grid), [taps(sigma, n).float() for n in grid]
    want = twin(image, *kernels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ops.blur(x, sigma, grid), want, rtol=1e-5, atol=1e-5)
    limit = 1 / 3 if twin is dense and sigma == 10.0 else 1.0
    ratio(
        f"blur {list(x.shape)} fp32, sigma {sigma:g}, against a {twin.__name__} convolution",
        lambda: ops.blur(x, sigma, grid),
        lambda: twin(image, *kernels),
        limit,
    )


def test_pixels(ratio):
    """SAG: images, 31 taps."""
    image = torch.randn(8, 3, 256, 256)
    kernels = [taps(9.0, 256, 31).float()] * 2
    x = image.flatten(2).transpose(1, 2)
    want = separable(image, *kernels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ops.blur(x, 9.0, (256, 256), 31), want, rtol=1e-5, atol=1e-5)
    ratio(
        "blur [8, 3, 256, 256] fp32, 31 taps, against a separable convolution",
        lambda: ops.blur(x, 9.0, (256, 256), 31),
        lambda: separable(image, *kernels),
        limit=1.0,
        rounds=21,
    )
