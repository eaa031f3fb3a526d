"""identity_attention on the CPU against the fp64 reference; the same cases run in
tests/ops/test_identity_attention_emulated.py and on a GPU."""

import pytest
import torch
import torch.nn.functional as F

from fastguide import ops, reference

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
ROUNDING = {FP32: 2e-6, BF16: 2**-8, FP16: 2**-11}  # of the output; fp32 also of the sums
OF_WEIGHTS = {FP32: 0.0, BF16: 2**-8, FP16: 2**-11}  # tensor cores take them in 16 bits

# R, heads, N, T, D
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 8),
    (1, 2, 49, 7, 13),
    (3, 1, 48, 16, 32),
    (2, 2, 50, 77, 40),
    (1, 2, 97, 65, 64),
    (1, 1, 33, 300, 80),
    (2, 1, 17, 513, 96),
    (1, 2, 70, 31, 128),
    (1, 1, 66, 90, 160),
    (1, 1, 3, 20, 256),
]


def fused(rows, heads, tokens, dim, parts, dtype, kind="token"):
    """Views `[R, heads, tokens, D]` of one projection, laid out as networks lay them out."""
    if kind == "token":  # [R, tokens, parts, heads, D], the output of one linear layer
        return torch.randn(rows, tokens, parts, heads, dim).to(dtype).permute(2, 0, 3, 1, 4)
    if kind == "head":  # [R, heads, tokens, parts * D]
        whole = torch.randn(rows, heads, tokens, parts * dim + 3).to(dtype)
        return whole[..., 3:].unflatten(3, (parts, dim)).movedim(3, 0)
    return torch.randn(parts, rows, heads, tokens, dim).to(dtype)  # one after the other


def make(size, dtype=FP32, kind="token", masked=False):
    rows, heads, queries, keys, dim = size
    q, k, v = fused(rows, heads, queries, dim, 3, dtype, kind)
    context_k, context_v = fused(rows, heads, keys, dim, 2, dtype, kind)
    case = {"q": q, "k": k, "v": v, "context_k": context_k, "context_v": context_v}
    if masked:
        lengths = torch.randint(keys + 1, (rows, 1))
        case["context_mask"] = torch.arange(keys) < lengths
    return case


def expected(case):
    wide = {name: x if x.dtype == torch.bool else x.double() for name, x in case.items()}
    return reference.identity_attention(**wide, scale=case["q"].shape[3] ** -0.5)


def close(got, want, dtype, weights=0.0):
    """Within the rounding of the output, and of weights that were rounded before."""
    error = ROUNDING[dtype] + weights
    torch.testing.assert_close(got.double(), want, rtol=error, atol=max(error, 2e-6))


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["token", "head", "plain"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(size, dtype, kind, masked):
    case = make(size, dtype, kind, masked)
    close(ops.identity_attention(**case), expected(case), dtype)


def test_the_reference_is_attention_with_a_dense_mask():
    case = make((2, 3, 9, 5, 8))
    eye, ones = torch.eye(9, dtype=torch.bool), torch.ones(9, 5, dtype=torch.bool)
    k, v = (torch.cat([case[x], case[f"context_{x}"]], 2) for x in "kv")
    want = F.scaled_dot_product_attention(case["q"], k, v, attn_mask=torch.cat([eye, ones], 1))
    torch.testing.assert_close(expected(case).float(), want)


def test_a_given_scale():
    case = make((1, 2, 9, 5, 8))
    want = reference.identity_attention(**{n: x.double() for n, x in case.items()}, scale=-1.7)
    close(ops.identity_attention(**case, scale=-1.7), want, FP32)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("kind", ["token", "head", "plain"])
def test_the_output_feeds_a_projection_without_a_copy(kind, dtype):
    case = make((2, 3, 9, 5, 8), dtype, kind)
    alone = dict(q=None, k=None, v=case["v"])
    for out in (ops.identity_attention(**case), ops.identity_attention(**alone)):
        assert (out.shape, out.dtype) == (case["v"].shape, dtype)
        assert out.transpose(1, 2).flatten(2).data_ptr() == out.data_ptr()


@pytest.mark.parametrize("kind", ["token", "head", "plain"])
def test_without_a_context_it_is_v(kind):
    v = make((2, 3, 9, 5, 8), BF16, kind)["v"]
    nothing = v[:, :, :0]
    for context in ((None, None), (nothing, nothing)):
        assert torch.equal(ops.identity_attention(None, None, v, *context), v)
        assert torch.equal(ops.identity_attention(v, v, v, *context), v)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_where_all_of_the_context_is_masked_it_is_v(dtype):
    case = make((3, 2, 50, 77, 40), dtype)
    mask = torch.ones(3, 77, dtype=torch.bool)
    mask[1] = False
    out = ops.identity_attention(**case, context_mask=mask)
    assert torch.equal(out[1], case["v"][1])
    assert not torch.equal(out[0], case["v"][0])


def test_a_masked_key_is_no_key():
    case = make((2, 2, 50, 77, 40))
    mask = torch.rand(77) < 0.5
    some = {n: x[:, :, mask] if "context" in n else x for n, x in case.items()}
    got = ops.identity_attention(**case, context_mask=mask.expand(2, -1))
    close(got, expected(some), FP32)


def test_a_mask_with_strides():
    case = make((4, 1, 5, 6, 8), masked=True)
    got = ops.identity_attention(**case)
    case["context_mask"] = case["context_mask"].t().contiguous().t()
    assert torch.equal(ops.identity_attention(**case), got)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_a_huge_score_of_its_own_gives_v(dtype):
    case = make((2, 2, 50, 77, 64), dtype)
    case["k"] = case["q"] = torch.full_like(case["q"], 50.0)  # 20,000
    assert torch.equal(ops.identity_attention(**case), case["v"])


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_a_huge_score_of_a_context_key_gives_its_value(dtype):
    case = make((2, 2, 50, 300, 64), dtype)
    case["q"] = torch.full_like(case["q"], 50.0)
    case["context_k"] = case["context_k"].clone().clamp(-1, 1)
    case["context_k"][:, :, 271] = 50.0
    want = case["context_v"][:, :, 271:272].expand(-1, -1, 50, -1)
    assert torch.equal(ops.identity_attention(**case), want)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_equal_scores_give_the_mean(sign):
    case = make((2, 2, 50, 300, 64))
    for name in ("q", "k", "context_k"):
        case[name] = torch.full_like(case[name], 3.5)
    case["q"] *= sign
    own, context = case["v"].unsqueeze(3), case["context_v"].unsqueeze(2)
    both = torch.cat([own, context.expand(-1, -1, 50, -1, -1)], 3)
    error = 98 * 2**-21  # of a weight: that of its score, 98, which is summed in another order
    got = ops.identity_attention(**case)
    torch.testing.assert_close(got.double(), both.double().mean(3), rtol=error, atol=error)


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e2, 1e4])
def test_scores_of_any_size(factor):
    case = make((1, 2, 50, 60, 16))
    case["q"] = factor * case["q"]
    error = 2e-6 + 4 * factor * 2**-21  # of a weight: that of its score, about 4 times the factor
    got, want = ops.identity_attention(**case), expected(case)
    torch.testing.assert_close(got.double(), want, rtol=error, atol=error)


def test_nan_stays():
    case = make((1, 2, 50, 20, 16))
    case["q"] = case["q"].clone()
    case["q"][0, 1, 7, 3] = torch.nan
    out = ops.identity_attention(**case)
    assert out[0, 1, 7].isnan().all()
    assert out.isnan().sum() == 16


def test_no_rows_and_no_queries():
    for rows, queries in ((0, 5), (2, 0)):
        case = make((rows, 3, queries, 4, 8))
        assert ops.identity_attention(**case).shape == (rows, 3, queries, 8)


def test_any_number_of_threads_gives_the_same():
    case = make((2, 3, 200, 77, 40), masked=True)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.identity_attention(**case)
        torch.set_num_threads(3)
        assert torch.equal(ops.identity_attention(**case), one)
    finally:
        torch.set_num_threads(threads)


X = torch.zeros(2, 3, 4, 8)
C = torch.zeros(2, 3, 5, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": X[0]}, r"v.shape is \(3, 4, 8\), but it should be \[R, heads, tokens, D\]"),
        ({"v": torch.zeros(1, 1, 1, 257)}, r"v.shape is \(1, 1, 1, 257\), .* D from 1 to 256"),
        ({"v": X.double()}, "v.dtype is torch.float64, but it should be fp32, bf16 or fp16"),
        ({"v": X.transpose(2, 3)}, "v has strides .*, but the last one should be 1"),
        ({"q": X[:1]}, r"q.shape is \(1, 3, 4, 8\), but it should be \(2, 3, 4, 8\), as v is"),
        ({"k": X.half()}, "k.dtype is torch.float16, but v is torch.float32"),
        ({"k": torch.zeros(2, 3, 8, 4).transpose(2, 3)}, "k has strides"),
        ({"q": None}, "q is None, but there is a context"),
        ({"k": None}, "k is None, but there is a context"),
        ({"context_k": None}, "context_k is None, but context_v is given"),
        ({"context_v": None}, "context_v is None, but context_k is given"),
        (
            {"context_k": C[..., :4]},
            r"context_k.shape is \(2, 3, 5, 4\), but it should be \(2, 3, 'any', 8\)",
        ),
        ({"context_v": C[:, :, :4]}, r"context_v.shape is \(2, 3, 4, 8\), .*, as context_k is"),
        ({"context_v": C.to("meta")}, "context_v is on meta, but context_k is on cpu"),
        ({"context_mask": torch.zeros(2, 5)}, "context_mask is torch.float32 of shape"),
        ({"context_mask": torch.zeros(2, 4, dtype=torch.bool)}, r"should be bool \(2, 5\)"),
        (
            {"context_k": None, "context_v": None, "context_mask": torch.zeros(2, 5)},
            "context_mask is given, but context_k and context_v are None",
        ),
    ],
)
def test_errors(change, message):
    case = {"q": X, "k": X, "v": X, "context_k": C, "context_v": C, **change}
    with pytest.raises(ValueError, match=message):
        ops.identity_attention(**case)


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked):
    case = make((2, 3, 5, 4, 8), masked=masked)
    arguments = (*(case[n] for n in ("q", "k", "v", "context_k", "context_v")), 0.3)
    torch.library.opcheck(
        torch.ops.fastguide.identity_attention.default, (*arguments, case.get("context_mask"))
    )


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_a_graph_break(masked):
    case = make((2, 3, 5, 4, 8), masked=masked)
    compiled = torch.compile(lambda c: 2 * ops.identity_attention(**c), fullgraph=True)
    torch.testing.assert_close(compiled(case), 2 * ops.identity_attention(**case))
    alone = {"q": None, "k": None, "v": case["v"]}
    assert torch.equal(compiled(alone), 2 * case["v"])
