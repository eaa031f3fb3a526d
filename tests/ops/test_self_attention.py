"""self_attention and its gradient on the CPU against the fp64 reference."""

import pytest
import torch
from torch.nn import functional as F

from fastguide import ops, reference
from fastguide.nets.attention import SelfAttention
from fastguide.staging.contract import Routing, Segment
from fastguide.staging.perturbation import Identity

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# rows, tokens, heads, channels of a head; blocks are of 96 queries and 256 keys
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 2, 5),
    (2, 49, 3, 32),
    (1, 96, 2, 64),
    (2, 97, 1, 72),
    (1, 256, 2, 40),
    (1, 263, 2, 80),
    (1, 600, 1, 17),
    (1, 130, 1, 256),
]
OPS = torch.ops.fastguide


def make(size=(2, 49, 3, 32), dtype=FP32, deviation=1.0):
    """qkv and the gradient of what attention returns."""
    rows, count, heads, dim = size
    qkv = deviation * torch.randn(rows, count, 3 * heads * dim)
    return qkv.to(dtype), torch.randn(rows, count, heads * dim).to(dtype)


def kernel(qkv, outward, heads):
    """What fastguide's kernels find in any dtype: the result, the log of sums and the gradient."""
    out, lse = OPS.self_attention(qkv, heads)
    return out, lse, OPS.self_attention_backward(outward, qkv, out, lse, heads)


def exact(qkv, outward, heads):
    """The same of the reference, in fp64."""
    wide = qkv.double().requires_grad_()
    q, k = wide.detach().unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)[:2]
    out = reference.self_attention(wide, heads)
    lse = (q.shape[-1] ** -0.5 * q @ k.mT).logsumexp(-1)
    return out.detach(), lse, torch.autograd.grad(out, wide, outward.double())[0]


def close(got, want, dtype=FP32, slack=1.0):
    """To two roundings of `dtype`, or `slack` times 2e-6, of the largest number."""
    assert got.dtype == dtype
    error = (got.double() - want).abs().max() / want.abs().max().clamp_min(1e-3)
    assert error <= max(2 * torch.finfo(dtype).eps if dtype != FP32 else 0.0, 2e-6 * slack)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(size, dtype):
    qkv, outward = make(size, dtype)
    (out, lse, gradient), want = kernel(qkv, outward, size[2]), exact(qkv, outward, size[2])
    close(out, want[0], dtype)
    close(lse, want[1])
    close(gradient, want[2], dtype, 5.0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradient_equals_that_of_the_reference(size):
    qkv, outward = make(size)
    qkv.requires_grad_()
    out = ops.self_attention(qkv, size[2])
    want, _, gradient = exact(qkv.detach(), outward, size[2])
    close(out.detach(), want)
    close(torch.autograd.grad(out, qkv, outward)[0], gradient, slack=5.0)


def test_the_reference_is_torchs():
    qkv, _ = make()
    q, k, v = qkv.double().unflatten(-1, (3, 3, 32)).permute(2, 0, 3, 1, 4)
    want = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(reference.self_attention(qkv.double(), 3), want)


@pytest.mark.parametrize("deviation", [10.0, 100.0, 1e-3, 0.0])
@pytest.mark.parametrize("tokens", [49, 300])
def test_large_and_small_logits(tokens, deviation):
    """Up to some 1e5; what a logit is rounded to is an error of the weight."""
    size = (1, tokens, 2, 32)
    qkv, outward = make(size)
    qkv[..., :128] *= deviation  # q and k
    found, want = kernel(qkv, outward, 2), exact(qkv, outward, 2)
    loose = 1.0 + deviation**2
    for one, other in zip(found, want, strict=True):
        close(one, other, slack=5.0 * loose)


def test_one_key_far_above_the_others_and_below():
    """All weight on the last chunk's last key, then on none of it."""
    for sign in (1.0, -1.0):
        qkv, outward = make((1, 300, 1, 16))
        qkv[..., :16] = 50.0
        qkv[:, -1, 16:32] = sign * 50.0
        found, want = kernel(qkv, outward, 1), exact(qkv, outward, 1)
        close(found[0], want[0], slack=100.0)
        close(found[2], want[2], slack=500.0)
        assert found[0].isfinite().all()


def test_nan_stays_in_its_row_and_head():
    qkv, outward = make((2, 40, 2, 8))
    qkv[1, 39, 16 + 8 + 3] = torch.nan  # a key of the second head
    out, _, gradient = kernel(qkv, outward, 2)
    bad = torch.zeros(2, 40, 2, 8, dtype=torch.bool)
    bad[1, :, 1] = True
    assert torch.equal(out.isnan(), bad.flatten(2))
    assert not gradient[0].isnan().any()
    assert not gradient[1].unflatten(1, (3, 2, 8))[:, :, 0].isnan().any()
    assert gradient[1].unflatten(1, (3, 2, 8))[:, 0, 1].isnan().all()


@pytest.mark.parametrize("size", [(5, 49, 3, 32), (3, 300, 2, 24)], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_row_is_the_same_alone_and_on_any_number_of_threads(size, dtype):
    qkv, outward = make(size, dtype)
    whole, threads = kernel(qkv, outward, size[2]), torch.get_num_threads()
    try:
        for count in (1, 2, 3, 32):
            torch.set_num_threads(count)
            again = kernel(qkv, outward, size[2])
            alone = kernel(qkv[-1:], outward[-1:], size[2])
            for one, last, other in zip(again, alone, whole, strict=True):
                assert torch.equal(one, other)
                assert torch.equal(last[0], other[-1])
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_written_past_the_end():
    """A head's results end where its neighbour's start."""
    qkv, outward = make((3, 7, 3, 5))
    whole = kernel(qkv, outward, 3)
    heads = qkv.unflatten(-1, (3, 3, 5))
    for h in range(3):
        one = heads[:, :, :, h].flatten(2).contiguous()
        part = outward.unflatten(-1, (3, 5))[:, :, h].contiguous()
        out, lse, gradient = kernel(one, part, 1)
        assert torch.equal(out, whole[0].unflatten(-1, (3, 5))[:, :, h])
        assert torch.equal(lse[:, 0], whole[1][:, h])
        assert torch.equal(gradient, whole[2].unflatten(-1, (3, 3, 5))[:, :, :, h].flatten(2))


def is_ours(out):
    return "fastguide_self_attention" in out.grad_fn.name()


@pytest.mark.parametrize("matrices", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, torch.float64])
def test_torchs_kernel_is_taken_where_it_is_faster(dtype, matrices, monkeypatch):
    """In bf16 and fp16 where the processor multiplies matrices of them, and in fp64."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: matrices)
    qkv, outward = make(dtype=dtype)
    qkv.requires_grad_()
    out = ops.self_attention(qkv, 3)
    assert is_ours(out) == (dtype == FP32 or (dtype != torch.float64 and not matrices))
    want, _, gradient = exact(qkv.detach(), outward, 3)
    close(out.detach(), want, dtype)
    error = torch.autograd.grad(out, qkv, outward)[0].double() - gradient
    assert error.abs().max() <= 8 * torch.finfo(dtype).eps * gradient.abs().max() + 1e-14


def test_the_graph_keeps_no_matrix():
    qkv, _ = make((2, 128, 2, 32))
    qkv.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = ops.self_attention(qkv, 2)
    shapes = sorted(tuple(t.shape) for t in kept)
    assert shapes == sorted([tuple(qkv.shape), tuple(out.shape), (2, 2, 128)])


def test_a_gradient_of_other_strides():
    qkv, _ = make()
    qkv.requires_grad_()
    ops.self_attention(qkv, 3).backward(torch.ones(1).expand(2, 49, 96))
    want = torch.autograd.grad(ops.self_attention(qkv, 3), qkv, torch.ones(2, 49, 96))
    assert torch.equal(qkv.grad, want[0])


def test_a_second_gradient_is_an_error():
    qkv, _ = make()
    qkv.requires_grad_()
    out = ops.self_attention(qkv, 3)
    (first,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="self_attention has no second gradient"):
        torch.autograd.grad(first.sum(), qkv)


def test_no_rows():
    qkv, outward = make((0, 5, 2, 3))
    out, lse, gradient = kernel(qkv, outward, 2)
    assert (out.shape, lse.shape, gradient.shape) == ((0, 5, 6), (0, 2, 5), (0, 5, 18))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_layer_is_as_torchs_with_and_without_a_perturbation_beside_it(parts):
    layer = SelfAttention("layer", 48, 3, parts)
    tokens = torch.randn(4, 30, 48)
    qkv = layer.qkv(tokens)
    q, k, v = qkv.unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    want = layer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    got = layer(tokens, (5, 6))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    segments = (Segment(0, 1), Segment(1, 2, Identity()))
    beside = layer(tokens, (5, 6), Routing({"layer": segments}))
    torch.testing.assert_close(beside[:2], got[:2], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(beside[2:], got[2:], atol=1e-3)


BAD = [
    (lambda x: x.int(), 3, "qkv is torch.int32"),
    (lambda x: x[0], 3, r"qkv is torch.float32 of shape \(49, 288\)"),
    (lambda x: x[:, :, ::2], 3, r"qkv is .* strides \(14112, 288, 2\)"),
    (lambda x: x[:1].expand(2, -1, -1), 3, r"qkv is .* strides \(0, 288, 1\)"),
    (lambda x: x[:, :0], 3, r"qkv.shape is \(2, 0, 288\), but it should be"),
    (lambda x: x[:, :, :287].contiguous(), 3, r"qkv.shape is \(2, 49, 287\), but it should be"),
    (lambda x: x, 5, "heads is 5, but it should divide the 96 channels"),
    (lambda x: x, 0, "heads is 0"),
    (lambda x: x.repeat(1, 1, 3), 1, "heads is 1, .* heads of 256 at most"),
]


@pytest.mark.parametrize(("spoil", "heads", "message"), BAD)
def test_errors_name_the_argument(spoil, heads, message):
    qkv, _ = make()
    with pytest.raises(ValueError, match=message):
        ops.self_attention(spoil(qkv), heads)


def test_the_kernels_protect_memory():
    qkv, outward = make()
    out, lse, _ = kernel(qkv, outward, 3)
    good = {"outward": outward, "qkv": qkv, "out": out, "lse": lse, "heads": 3}
    bad = [
        {"outward": outward[:1]},
        {"outward": outward.mT.contiguous().mT},
        {"outward": outward.bfloat16()},
        {"qkv": qkv[:, :48]},
        {"out": out[:, :48].contiguous()},
        {"lse": lse[:, :2].contiguous()},
        {"lse": lse.double()},
        {"heads": 4},
        {"heads": 0},
    ]
    for spoiled in bad:
        with pytest.raises(RuntimeError, match=r"fastguide\.ops"):
            OPS.self_attention_backward(**{**good, **spoiled})
    with pytest.raises(RuntimeError, match=r"fastguide\.ops"):
        OPS.self_attention(qkv, 7)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_opcheck(dtype):
    qkv, outward = make((2, 9, 2, 8), dtype)
    out, lse, _ = kernel(qkv, outward, 2)
    torch.library.opcheck(OPS.self_attention.default, (qkv.clone().requires_grad_(), 2))
    torch.library.opcheck(OPS.self_attention_backward.default, (outward, qkv, out, lse, 2))


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_compiles_without_a_graph_break_with_its_gradient(dtype):
    qkv, outward = make(dtype=dtype)
    qkv.requires_grad_()

    def f(qkv):
        return ops.self_attention(qkv * 2, 3) - 1

    want, got = f(qkv), torch.compile(f, fullgraph=True)(qkv)
    torch.testing.assert_close(got, want)
    gradients = [torch.autograd.grad(out, qkv, outward)[0] for out in (got, want)]
    torch.testing.assert_close(*gradients)
