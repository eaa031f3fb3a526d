"""The Triton kernels of `attention_colsum` against the fp64 reference, run by Triton's interpreter
(test_triton.py). It multiplies the bits of bf16 as integers, so bf16 is left to a GPU.
"""

import pytest
import torch
from pairs import pairs
from test_attention_colsum import close, expected, make

from fastguide.kernels import tuning
from fastguide.kernels.attention_colsum import attention_colsum

FP32, FP16 = torch.float32, torch.float16

# R, heads, N, M, D
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 8),
    (1, 2, 49, 7, 13),
    (2, 2, 64, 64, 32),
    (1, 1, 70, 100, 80),
    (1, 1, 33, 20, 160),
]


@pytest.fixture(params=[16, 256], ids=["parts", "whole"], autouse=True)
def depth(request, monkeypatch):
    """Tokens multiplied in parts or whole, in blocks of other sizes for queries and keys."""
    settings = {"QUERIES": 32, "KEYS": 64, "DEPTH": request.param, "num_warps": 4, "num_stages": 2}
    for kernel in ("attention_colsum", "attention_colsum_fp32"):
        monkeypatch.setitem(tuning.DEFAULTS, kernel, settings)


@pytest.mark.parametrize(("size", "dtype", "kind"), pairs(SIZES, [FP32, FP16], ["token", "head"]))
def interpreted_equals_the_reference(size, dtype, kind):
    q, k = make(size, dtype, kind)
    got = attention_colsum(q, k, size[4] ** -0.5)
    assert (got.dtype, got.shape) == (FP32, (size[0], size[3]))
    close(got, expected(q, k), size[2])


def interpreted_one_key_gets_all():
    q, k = make((2, 2, 50, 77, 64))
    q, k = torch.full_like(q, 50.0), k.clone().clamp(-1, 1)
    k[:, :, 71] = 50.0  # a score of 20,000
    want = torch.zeros(2, 77)
    want[:, 71] = 50.0
    assert torch.equal(attention_colsum(q, k, 0.125), want)


def interpreted_equal_scores_share():
    q, k = torch.full((1, 2, 33, 32), -35.0), torch.full((1, 2, 77, 32), 35.0)
    torch.testing.assert_close(attention_colsum(q, k, 0.125), torch.full((1, 77), 33 / 77))


def interpreted_a_given_scale_and_no_queries():
    q, k = make((1, 2, 9, 5, 8))
    assert not torch.equal(attention_colsum(q, k, -1.7), attention_colsum(q, k, 1.7))
    close(attention_colsum(q, k, 8**-0.5), expected(q, k), 9)
    assert torch.equal(attention_colsum(q[:, :, :0], k, 1.0), torch.zeros(1, 5))
