"""group_norm and its gradient on the CPU against the fp64 reference; the same cases run in
tests/ops/interpreted_group_norm.py.
"""

import pytest
import torch

from fastguide import ops, reference

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# rows, tokens, channels, groups
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 5, 1),
    (3, 35, 24, 4),
    (2, 33, 34, 2),
    (1, 64, 64, 32),
    (2, 100, 192, 32),
    (2, 7, 320, 32),
    (2, 65, 256, 1),
]
EPS = 1e-5
OPS = torch.ops.fastguide


def make(size=(3, 35, 24, 4), dtype=FP32, offset=0.0, deviation=2.0, silu=True):
    rows, count, channels, groups = size
    return {
        "tokens": (offset + deviation * torch.randn(rows, count, channels)).to(dtype),
        "gamma": 1.0 + 0.5 * torch.randn(rows, channels),
        "beta": torch.randn(channels).expand(rows, -1),  # one row for all
        "groups": groups,
        "eps": EPS,
        "silu": silu,
    }


def exact(case):
    """The case in fp64, whose tensors ask for gradients."""
    floats = {n: v.double() for n, v in case.items() if isinstance(v, torch.Tensor)}
    return {**case, **{n: v.requires_grad_() for n, v in floats.items()}}


def inputs(case):
    return [case[name] for name in ("tokens", "gamma", "beta")]


def outward_of(case):
    return torch.randn(case["tokens"].shape).to(case["tokens"].dtype)


def close(got, want, dtype, slack=1.0, share=0.51):
    """To `share` of a spacing of `dtype` and `slack` roundings of fp32 of the largest number."""
    assert got.dtype == dtype
    largest = float(want.detach().abs().max())
    rounding = torch.finfo(dtype).eps if dtype != FP32 else 0.0
    torch.testing.assert_close(
        got.double(), want.detach(), rtol=share * rounding, atol=slack * 2e-6 * largest + 1e-7
    )


def slack(case):
    """How many roundings of the tokens are one of their deviation: what a mean in fp32 costs."""
    x = case["tokens"].double()
    deviation = (x.var((1, 2), unbiased=False) + case["eps"]).sqrt().min()
    return 1.0 + 0.1 * float(x.abs().max() / deviation)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(size, dtype, silu):
    case = make(size, dtype, silu=silu)
    close(ops.group_norm(**case), reference.group_norm(**exact(case)), dtype)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("size", SIZES[1:], ids=str)
def test_gradients_equal_those_of_the_reference(size, dtype, silu):
    case = make(size, dtype, silu=silu)
    outward = outward_of(case)
    given = [t.requires_grad_() for t in inputs(case)]
    found = torch.autograd.grad(ops.group_norm(**case), given, outward)
    wide = exact(case)
    want = torch.autograd.grad(reference.group_norm(**wide), inputs(wide), outward.double())
    for one, other, kind in zip(found, want, (dtype, FP32, FP32), strict=True):
        close(one, other, kind, 3.0)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("offset", "deviation"), [(100.0, 1.0), (-3e4, 5.0), (1.0, 1e-3), (0.0, 1e-6), (1e4, 0.0)]
)
def test_a_mean_far_above_the_deviation(offset, deviation, silu):
    case = make((2, 100, 48, 4), offset=offset, deviation=deviation, silu=silu)
    case["eps"] = 1e-12
    loose, outward = slack(case) if deviation else 1.0, outward_of(case)
    given = [t.requires_grad_() for t in inputs(case)]
    out, wide = ops.group_norm(**case), exact(case)
    want = reference.group_norm(**wide)
    close(out, want, FP32, loose)
    found = torch.autograd.grad(out, given, outward)
    expected = torch.autograd.grad(want, inputs(wide), outward.double())
    for one, other in zip(found, expected, strict=True):
        close(one, other, FP32, 3.0 * loose)


@pytest.mark.parametrize("first", [1e3, -1e6])
def test_a_first_token_unlike_the_others(first):
    """Sums are of differences to it."""
    case = make((1, 100, 32, 2), silu=False)
    case["tokens"][:, 0] = first
    close(ops.group_norm(**case), reference.group_norm(**exact(case)), FP32)
    case["tokens"][:, 0] = 0.0
    case["tokens"][:, 0, 5] = first
    close(ops.group_norm(**case), reference.group_norm(**exact(case)), FP32)


def test_silu_of_large_numbers():
    case = make((1, 64, 16, 1))
    case["gamma"] = torch.full((1, 16), 60.0)
    want = reference.group_norm(**exact(case))
    assert want.abs().max() > 100
    torch.testing.assert_close(ops.group_norm(**case).double(), want.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("offset", "deviation"), [(3.0, 2.0), (3e4, 0.01), (-1e6, 0.5)])
def test_statistics(offset, deviation):
    """What the gradient is computed from, and what other kernels are compared with."""
    case = make((3, 50, 24, 4), offset=offset, deviation=deviation)
    _, mean, inverse = OPS.group_norm(*case.values())
    x = case["tokens"].double().unflatten(2, (4, 6))
    torch.testing.assert_close(mean.double(), x.mean((1, 3)), rtol=1e-6, atol=1e-7)
    want = (x.var((1, 3), unbiased=False) + EPS).rsqrt()
    torch.testing.assert_close(inverse.double(), want, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("silu", [False, True])
def test_the_reference_has_the_gradient_of_its_formula(silu):
    case = exact(make((2, 5, 6, 2), silu=silu))

    def f(tokens, gamma, beta):
        return reference.group_norm(tokens, gamma, beta, 2, EPS, silu)

    assert torch.autograd.gradcheck(f, inputs(case))
    maps = case["tokens"].transpose(1, 2)
    case["gamma"], case["beta"] = (t.detach()[:1].expand(2, -1) for t in inputs(case)[1:])
    want = torch.nn.functional.group_norm(maps, 2, case["gamma"][0], case["beta"][0], EPS)
    want = torch.nn.functional.silu(want) if silu else want
    torch.testing.assert_close(reference.group_norm(**case), want.transpose(1, 2))


@pytest.mark.parametrize("size", [(5, 100, 192, 32), (5, 70, 34, 17), (1, 100, 320, 32)], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_a_row_is_the_same_alone_and_on_any_number_of_threads(size, dtype):
    case = make(size, dtype)
    outward, affine = outward_of(case), (case["gamma"], case["beta"])

    def both(rows):
        x, gamma, beta = case["tokens"][rows], *(t[rows] for t in affine)
        out, mean, inverse = OPS.group_norm(x, gamma, beta, size[3], EPS, True)
        return out, *OPS.group_norm_backward(outward[rows], x, mean, inverse, gamma, beta, True)

    whole, threads = both(slice(None)), torch.get_num_threads()
    try:
        for count in (1, 2, 3, 32):
            torch.set_num_threads(count)
            for one, other in zip(both(slice(None)), whole, strict=True):
                assert torch.equal(one, other)
            alone = both(slice(size[0] - 1, size[0]))
            for one, other in zip(alone, whole, strict=True):
                assert torch.equal(one[0], other[-1])
    finally:
        torch.set_num_threads(threads)


def test_nan_stays_in_its_group():
    case = make((2, 40, 24, 4))
    case["tokens"][1, 39, 7] = torch.nan
    bad = ops.group_norm(**case).isnan()
    assert bad[1, :, 6:12].all()
    assert bad.sum() == 40 * 6


def test_only_what_is_asked_for_has_a_gradient():
    case = make()
    case["tokens"].requires_grad_()
    out = ops.group_norm(**case)
    out.backward(torch.ones(1).expand_as(out))  # of other strides than the tokens
    want = torch.autograd.grad(ops.group_norm(**case), case["tokens"], torch.ones_like(out))
    assert torch.equal(case["tokens"].grad, want[0])
    assert case["gamma"].grad is None
    with torch.no_grad():
        assert torch.equal(ops.group_norm(**case), out)


def test_the_graph_keeps_the_tokens_and_small_tensors():
    case = make((2, 300, 64, 32))
    case["tokens"].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.group_norm(**case)
    large = [t for t in kept if t.numel() > 2 * 64]
    assert [t.data_ptr() for t in large] == [case["tokens"].data_ptr()]


def test_a_second_gradient_is_an_error():
    case = make()
    case["tokens"].requires_grad_()
    out = ops.group_norm(**case)
    (first,) = torch.autograd.grad(out.sum(), case["tokens"], create_graph=True)
    with pytest.raises(RuntimeError, match="group_norm has no second gradient"):
        torch.autograd.grad(first.sum(), case["tokens"])


def test_no_rows():
    case = make((0, 5, 6, 2))
    assert ops.group_norm(**case).shape == (0, 5, 6)


BAD = [
    ("tokens", lambda c: c["tokens"].double(), "tokens is torch.float64"),
    ("tokens", lambda c: c["tokens"].mT, r"tokens is .* strides \(840, 1, 24\)"),
    ("tokens", lambda c: c["tokens"][0], r"tokens is torch.float32 of shape \(35, 24\)"),
    ("tokens", lambda c: c["tokens"][:, :0], r"tokens.shape is \(3, 0, 24\), but N should be"),
    ("gamma", lambda c: c["gamma"][0], r"gamma is torch.float32 of shape \(24,\)"),
    ("gamma", lambda c: c["gamma"].bfloat16(), "gamma is torch.bfloat16"),
    ("gamma", lambda c: c["gamma"].to("meta"), "gamma is .* on meta"),
    ("beta", lambda c: c["beta"][:2], r"beta is .*but it should be fp32 \(3, 24\) on cpu"),
    ("beta", lambda c: torch.zeros(24, 3).T, r"beta is .* strides \(1, 3\)"),
    ("groups", lambda c: 5, "groups is 5, but it should divide the 24 channels"),
    ("groups", lambda c: 0, "groups is 0"),
    ("eps", lambda c: 0.0, "eps is 0.0, but it should be above 0"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_errors_name_the_argument(name, spoil, message):
    case = make()
    with pytest.raises(ValueError, match=message):
        ops.group_norm(**{**case, name: spoil(case)})


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_opcheck(dtype):
    case = make((2, 9, 8, 4), dtype)
    given = [t.requires_grad_() for t in inputs(case)]
    torch.library.opcheck(OPS.group_norm.default, (*given, 4, EPS, True))
    case = make((2, 9, 8, 4), dtype)
    _, mean, inverse = OPS.group_norm(*case.values())
    arguments = (outward_of(case), case["tokens"], mean, inverse, case["gamma"], case["beta"], True)
    torch.library.opcheck(OPS.group_norm_backward.default, arguments)


def test_compiles_without_a_graph_break_with_its_gradient():
    case = make()
    given = [t.clone().requires_grad_() for t in inputs(case)]

    def f(tokens, gamma, beta):
        return ops.group_norm(tokens * 2, gamma + 1, beta, 4, EPS, True) - 1

    want = f(*given)
    got = torch.compile(f, fullgraph=True)(*given)
    torch.testing.assert_close(got, want)
    outward = outward_of(case)
    for one, other in zip(
        torch.autograd.grad(got, given, outward),
        torch.autograd.grad(want, given, outward),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
