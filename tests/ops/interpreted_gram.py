"""The Triton kernels of `gram` against the fp64 reference, run by Triton's interpreter
(test_triton.py).
"""

import math

import pytest
import torch
from pairs import pairs
from test_gram import (
    BF16,
    FP16,
    FP32,
    SHAPES,
    cancelling,
    close,
    expected,
    make,
    mixed,
    near,
    raw,
    with_bases,
)

from fastguide.kernels import tuning
from fastguide.kernels.gram import gram

SMALL = {"BLOCK": 32, "STEPS": 3, "UNROLL": 1, "TILE": 256, "num_warps": 1}


@pytest.fixture(params=["small", "default"])
def chunk(request, monkeypatch):
    """Chunks smaller and larger than the samples of most tests."""
    if request.param == "small":
        for kernel in ("gram", "gram_many"):
            monkeypatch.setitem(tuning.DEFAULTS, kernel, SMALL)


def launch(case):
    """ops.gram as it runs on a GPU."""
    return gram(*raw(case))


@pytest.mark.parametrize(
    ("branches", "kind", "dtype"),
    pairs([1, 2, 3, 6], ["plain", "channels", "rows", "last", "cropped"], [FP32, BF16, FP16]),
)
def interpreted_gram_equals_the_reference(branches, kind, dtype):
    case = make(branches, (2, 3, 5, 7), dtype, kind)
    close(launch(case), expected(case), 105)


def interpreted_as_many_branches_as_there_may_be(chunk):
    case = make(8)
    close(launch(case), expected(case), 140)


# 2,139 elements: 23 small chunks, of which 16 are added at once
@pytest.mark.parametrize("shape", [*SHAPES[:-1], (1, 3, 23, 31)], ids=str)
def interpreted_any_shape(shape, chunk):
    case = make(2, shape)
    close(launch(case), expected(case), math.prod(shape[1:]))


def interpreted_a_base_for_each_sample(chunk):
    case = with_bases(make(2))
    close(launch(case), expected(case), 140)


def interpreted_mixed_dtypes_deltas_and_a_factor(chunk):
    case = mixed()
    close(launch(case), expected(case), 140)


@pytest.mark.parametrize("factored", [0b000, 0b010, 0b100, 0b110])
@pytest.mark.parametrize("deltas", [0b000, 0b010, 0b100, 0b110])
def interpreted_deltas_and_factors(deltas, factored):
    case = make(3, (2, 3, 5, 7), BF16)
    case |= {"deltas": deltas, "factored": factored}
    if factored:
        case["factor"] = torch.randn(2, 3, 5, 7)
    close(launch(case), expected(case), 105)


def interpreted_close_predictions():
    case = near((2, 4, 16, 16))
    close(launch(case), expected(case), 1024)


def interpreted_an_image_that_is_left_of_large_terms():
    case = cancelling((2, 4, 16, 16))
    close(launch(case), expected(case), 1024)


@pytest.mark.parametrize("numel", [64, 4096])
def interpreted_roundings_that_all_go_the_same_way(numel):
    x = torch.full((1, numel), 0.1)
    case = {"x": x, "branches": [x * 3, x * 1.7], "base": torch.tensor([0.3, 0.9])}
    close(launch(case), expected(case), numel, 1e-6)


def interpreted_a_sample_is_the_same_alone():
    case = make(2, (3, 2, 20, 20), BF16)
    whole = launch(case)
    one = {**case, "x": case["x"][1:2], "branches": [b[1:2] for b in case["branches"]]}
    assert torch.equal(launch(one)[0], whole[1])


def interpreted_nan_stays_in_its_sample_and_its_vector():
    case = make(3, (3, 2, 20, 20))
    case["branches"][1][2, 1, 19, 3] = torch.nan
    bad = launch(case).isnan()
    assert not bad[:2].any()
    assert bad[2, 2].all()
    assert bad[2].sum() == 5 + 3


def interpreted_nothing_adds_up_to_zero():
    empty = {"x": torch.zeros(2, 0), "branches": [torch.zeros(2, 0)], "base": torch.ones(2)}
    assert torch.equal(launch(empty), torch.zeros(2, 2, 3, dtype=torch.float64))
