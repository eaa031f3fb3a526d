"""attention_colsum on the CPU against the fp64 reference; the same cases run in
tests/ops/interpreted_attention_colsum.py."""

import pytest
import torch
from test_identity_attention import fused

from fastguide import ops, reference

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

# R, heads, N, M, D
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 8),
    (2, 3, 1, 5, 8),
    (1, 2, 49, 7, 13),
    (2, 2, 64, 64, 32),
    (1, 2, 197, 65, 40),
    (2, 1, 70, 300, 80),
    (1, 1, 33, 90, 160),
    (1, 1, 20, 17, 256),
]


def make(size, dtype=FP32, kind="token"):
    rows, heads, queries, keys, dim = size
    q, _ = fused(rows, heads, queries, dim, 2, dtype, kind)
    _, k = fused(rows, heads, keys, dim, 2, dtype, kind)
    return q, k


def expected(q, k):
    return reference.attention_colsum(q.double(), k.double(), q.shape[3] ** -0.5)


def close(got, want, queries):
    """fp32 rounding of as many terms, each at most 1."""
    torch.testing.assert_close(got.double(), want, rtol=4e-6, atol=1e-7 * queries)


@pytest.mark.parametrize("kind", ["token", "head", "plain"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(size, dtype, kind):
    q, k = make(size, dtype, kind)
    got = ops.attention_colsum(q, k)
    assert (got.dtype, got.shape) == (FP32, (size[0], size[3]))
    close(got, expected(q, k), size[2])


def test_more_keys_than_a_block_of_queries_has_room_for():
    q, k = make((1, 2, 100, 5000, 8))
    close(ops.attention_colsum(q, k), expected(q, k), 100)


def test_the_mean_is_one_with_as_many_queries_as_keys():
    q, k = make((3, 2, 300, 300, 40))
    mean = ops.attention_colsum(4.0 * q, k).mean(1)
    torch.testing.assert_close(mean, torch.ones(3), rtol=1e-6, atol=0)


def test_a_given_scale():
    q, k = make((1, 2, 9, 5, 8))
    want = reference.attention_colsum(q.double(), k.double(), -1.7)
    close(ops.attention_colsum(q, k, -1.7), want, 9)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_one_key_gets_all(dtype):
    q, k = make((2, 2, 50, 77, 64), dtype)
    q, k = torch.full_like(q, 50.0), k.clone().clamp(-1, 1)
    k[:, :, 71] = 50.0  # a score of 20,000
    want = torch.zeros(2, 77)
    want[:, 71] = 50.0
    assert torch.equal(ops.attention_colsum(q, k), want)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_equal_scores_share(sign):
    q = torch.full((2, 3, 33, 64), 35.0 * sign)
    k = torch.full((2, 3, 77, 64), 35.0)  # scores of 9,800
    torch.testing.assert_close(ops.attention_colsum(q, k), torch.full((2, 77), 33 / 77))


def test_nan_stays():
    q, k = make((2, 2, 50, 20, 16))
    q = q.clone()
    q[1, 1, 7, 3] = torch.nan
    out = ops.attention_colsum(q, k)
    assert out[1].isnan().all()
    assert out[0].isfinite().all()


def test_no_queries_no_keys_no_rows():
    assert torch.equal(ops.attention_colsum(*make((2, 3, 0, 5, 8))), torch.zeros(2, 5))
    assert ops.attention_colsum(*make((2, 3, 5, 0, 8))).shape == (2, 0)
    assert ops.attention_colsum(*make((0, 3, 5, 4, 8))).shape == (0, 4)


def test_any_number_of_threads_gives_the_same():
    q, k = make((2, 3, 500, 77, 40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.attention_colsum(q, k)
        torch.set_num_threads(3)
        assert torch.equal(ops.attention_colsum(q, k), one)
    finally:
        torch.set_num_threads(threads)


X = torch.zeros(2, 3, 4, 8)


@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        (X[0], X, r"q.shape is \(3, 4, 8\), but it should be \[R, heads, tokens, D\]"),
        (X.int(), X, "q.dtype is torch.int32, but it should be fp32, bf16 or fp16"),
        (X.transpose(2, 3), X, "q has strides .*, but the last one should be 1"),
        (X, X[:, :2], r"k.shape is \(2, 2, 4, 8\), but it should be \(2, 3, 'any', 8\), as q is"),
        (X, X[0], r"k.shape is \(3, 4, 8\), but"),
        (X, X.half(), "k.dtype is torch.float16, but q is torch.float32"),
        (X, X.to("meta"), "k is on meta, but q is on cpu"),
    ],
)
def test_errors(q, k, message):
    with pytest.raises(ValueError, match=message):
        ops.attention_colsum(q, k)


def test_opcheck():
    q, k = make((2, 3, 5, 4, 8))
    torch.library.opcheck(torch.ops.fastguide.attention_colsum.default, (q, k, 0.3))


def test_compiles_without_a_graph_break():
    q, k = make((2, 3, 5, 4, 8))
    compiled = torch.compile(lambda q, k: 2 * ops.attention_colsum(q, k), fullgraph=True)
    torch.testing.assert_close(compiled(q, k), 2 * ops.attention_colsum(q, k))
