"""The Triton kernels of `group_norm` and its gradient against the fp64 reference, run by Triton's
interpreter (test_triton.py).
"""

import pytest
import torch
from pairs import pairs
from test_group_norm import (
    BF16,
    EPS,
    FP16,
    FP32,
    close,
    exact,
    inputs,
    make,
    outward_of,
    slack,
)

from fastguide import reference
from fastguide.kernels import tuning
from fastguide.kernels.group_norm import group_norm
from fastguide.kernels.group_norm_backward import group_norm_backward

# rows, tokens, channels, groups
SIZES = [(1, 1, 2, 1), (2, 3, 5, 1), (3, 35, 24, 4), (2, 33, 34, 2), (1, 40, 72, 12)]
SMALL = {"TILE": 512, "WIDTH": 32, "num_warps": 1}
TILES = ["small", "default"]


@pytest.fixture(params=TILES)
def tile(request, monkeypatch):
    """Tiles smaller and larger than the rows of most tests."""
    if request.param == "small":
        for kernel in ("group_norm", "group_norm_backward"):
            monkeypatch.setitem(tuning.DEFAULTS, kernel, SMALL)


def check(case, loose=1.0):
    """The result and the gradients, as they are found on a GPU."""
    dtype, outward, wide = case["tokens"].dtype, outward_of(case), exact(case)
    share = 1.01 if dtype == BF16 else 0.51  # the interpreter cuts bfloat16 off
    want = reference.group_norm(**wide)
    out, mean, inverse = group_norm(*case.values())
    close(out, want, dtype, loose, share)
    found = group_norm_backward(
        outward, case["tokens"], mean, inverse, case["gamma"], case["beta"], case["silu"]
    )
    expected = torch.autograd.grad(want, inputs(wide), outward.double())
    for one, other, kind in zip(found, expected, (dtype, FP32, FP32), strict=True):
        close(one, other, kind, 3.0 * loose, share)


@pytest.mark.parametrize(
    ("size", "silu", "tile"), pairs(SIZES, [False, True], TILES), indirect=["tile"]
)
def interpreted_group_norm_equals_the_reference(size, silu, tile):
    check(make(size, silu=silu))


@pytest.mark.parametrize("dtype", [BF16, FP16])
def interpreted_half_dtypes(dtype, tile):
    check(make((2, 35, 24, 4), dtype))


@pytest.mark.parametrize(("offset", "deviation"), [(100.0, 1.0), (-3e4, 5.0), (1.0, 1e-3)])
def interpreted_a_mean_far_above_the_deviation(offset, deviation, tile):
    case = {**make((1, 50, 24, 4), offset=offset, deviation=deviation), "eps": 1e-12}
    check(case, slack(case))


def interpreted_a_first_token_unlike_the_others(tile):
    case = make((1, 50, 32, 2), silu=False)
    case["tokens"][:, 0] = 1e3
    close(group_norm(*case.values())[0], reference.group_norm(**exact(case)), FP32)


def interpreted_statistics(tile):
    case = make((3, 50, 24, 4), offset=3.0)
    _, mean, inverse = group_norm(*case.values())
    x = case["tokens"].double().unflatten(2, (4, 6))
    torch.testing.assert_close(mean.double(), x.mean((1, 3)), rtol=1e-6, atol=1e-7)
    deviation = (x.var((1, 3), unbiased=False) + EPS).rsqrt()
    torch.testing.assert_close(inverse.double(), deviation, rtol=1e-6, atol=0.0)


def interpreted_a_row_is_the_same_alone(tile):
    case = make((3, 20, 24, 4))
    whole = group_norm(*case.values())[0]
    one = {n: v[1:2] if isinstance(v, torch.Tensor) else v for n, v in case.items()}
    assert torch.equal(group_norm(*one.values())[0][0], whole[1])


def interpreted_no_rows():
    case = make((0, 5, 6, 2))
    out, mean, inverse = group_norm(*case.values())
    assert (out.shape, mean.shape) == ((0, 5, 6), (0, 2))
    gradients = group_norm_backward(out, out, mean, inverse, case["gamma"], case["gamma"], True)
    assert [g.shape for g in gradients] == [(0, 5, 6), (0, 6), (0, 6)]
