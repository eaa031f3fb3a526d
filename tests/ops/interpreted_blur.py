"""The Triton kernel of `blur` against the fp64 reference, run by Triton's interpreter
(test_triton.py).
"""

import math

import numpy as np
import pytest
import torch
import triton.language as tl
from pairs import pairs
from test_blur import BF16, FP16, FP32, GRIDS, SIGMAS, close, make
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from fastguide import reference
from fastguide.kernels import tuning
from fastguide.kernels.blur import blur
from fastguide.ops.blur import dense_like

SENTINEL = 77.0
TILES = {"small": {**tuning.DEFAULTS["blur"], "BLOCK": 16, "BYTES": 64}}
TILES |= {"default": tuning.DEFAULTS["blur"]}


@pytest.fixture(params=TILES)
def tile(request, monkeypatch):
    """Tiles smaller and larger than most axes of the tests."""
    monkeypatch.setitem(tuning.DEFAULTS, "blur", TILES[request.param])


@pytest.fixture(autouse=True)
def _bfloat16_products(monkeypatch):
    """The interpreter keeps bfloat16 as bits, and its `dot` multiplies the bits: widen them."""
    dot = InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def launch(x, sigma, grid, kernel_size=None):
    """ops.blur as it runs on a GPU; the output lies between sentinels."""
    like = dense_like(x)
    buffer = torch.full((like.numel() + 2048,), SENTINEL, dtype=x.dtype)
    out = buffer[1024:-1024].as_strided(like.shape, like.stride(), 1024)
    sigmas, value = (sigma, 0.0) if isinstance(sigma, torch.Tensor) else (None, sigma)
    down, across = value if isinstance(value, tuple) else (value, value)
    blur(out, x, sigmas, down, across, *grid, kernel_size or 0)
    assert (buffer[:1024] == SENTINEL).all()
    assert (buffer[-1024:] == SENTINEL).all()
    return out.clone()


def near(got, want, dtype):
    """The kernel rounds between the axes too; the interpreter cuts bfloat16 off."""
    scale = {FP32: 1, BF16: 3, FP16: 2}[dtype]
    close(got, want, dtype, scale)


@pytest.mark.parametrize(
    ("grid", "kind", "dtype"),
    pairs(GRIDS, ["padded pixels", "qkv", "cropped"], [FP32, BF16, FP16]),
)
def interpreted_blur_equals_the_reference(grid, kind, dtype, tile):
    x = make(grid, 5, dtype, kind, rows=1)
    near(launch(x, 1.7, grid), reference.blur(x.double(), 1.7, grid), dtype)


@pytest.mark.parametrize("sigma", SIGMAS)
def interpreted_any_sigma(sigma, tile):
    x = make((9, 20), 3, rows=1)
    close(launch(x, sigma, (9, 20)), reference.blur(x.double(), sigma, (9, 20)))


@pytest.mark.parametrize(
    ("kernel_size", "tile"),
    [(1, "default"), (3, "small"), (9, "default"), (31, "small")],
    indirect=["tile"],
)
def interpreted_fixed_kernel(kernel_size, tile):
    x = make((24, 7), 3, kind="pixels", rows=1)
    for sigma in (0.0, 1e-20, 1.0, 9.0):
        want = reference.blur(x.double(), sigma, (24, 7), kernel_size)
        close(launch(x, sigma, (24, 7), kernel_size), want)


@pytest.mark.parametrize(
    ("dtype", "kind", "tile"),
    pairs([FP32, BF16, FP16], ["channels", "pixels", "qkv"], list(TILES)),
    indirect=["tile"],
)
def interpreted_rows_have_their_own_sigma(kind, dtype, tile):
    x = make((6, 18), 5, dtype, kind, rows=6)
    sigmas = torch.tensor([0.0, 1.5, math.inf, 0.1, 1e30, 4.0])
    got = launch(x, sigmas, (6, 18))
    near(got, reference.blur(x.double(), sigmas, (6, 18)), dtype)
    assert torch.equal(got[[0, 3]], x[[0, 3]])


def interpreted_a_sigma_that_is_none_is_nan():
    x = make((6, 18), 5, rows=3)
    got = launch(x, torch.tensor([1.0, -1.0, math.nan]), (6, 18))
    assert got[0].isfinite().all()
    assert got[1:].isnan().all()


@pytest.mark.parametrize("sigma", [(1.3, 0.0), (0.0, math.inf), (math.inf, 0.7)])
def interpreted_a_sigma_for_each_axis(sigma):
    x = make((6, 18), 5, rows=1)
    close(launch(x, sigma, (6, 18)), reference.blur(x.double(), sigma, (6, 18)))


def interpreted_offsets_of_64_bits(monkeypatch):
    x = make((9, 20), 5, kind="qkv")
    want = launch(x, 2.0, (9, 20))
    monkeypatch.setattr("fastguide.kernels.blur.row_extent", lambda x: 2**31)
    assert torch.equal(launch(x, 2.0, (9, 20)), want)
