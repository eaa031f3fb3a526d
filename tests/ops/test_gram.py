"""gram on the CPU against the fp64 reference; interpreted_gram.py runs the same cases."""

import math

import pytest
import torch
from test_step import layout

from fastguide import ops, reference
from fastguide.ops import table as tables
from fastguide.ops.gram import MAX_BRANCHES

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = [
    (1, 1, 1, 1),
    (2, 3),
    (2, 1, 5),
    (5, 3, 1, 1),
    (1, 2, 3, 4, 5),
    (7, 513),
    (2, 4, 16, 16),
    (2, 3, 77, 83),
]


def make(branches, shape=(3, 4, 5, 7), dtype=FP32, kind="plain"):
    return {
        "x": torch.randn(shape),
        "branches": [layout(torch.randn(shape).to(dtype), kind) for _ in range(branches)],
        "base": torch.tensor([0.7, -1.3]),
    }


def expected(case):
    return reference.gram(**{**case, "x": case["x"].double()})


def close(got, want, numel, limit=3e-7):
    """Up to `limit` |v_i| |v_j|, the last vector being ones."""
    assert got.dtype == torch.float64
    assert torch.equal(got[..., :-1], got[..., :-1].mT)
    norms = want[..., :-1].diagonal(dim1=1, dim2=2).sqrt()
    others = torch.cat([norms, torch.full_like(norms[:, :1], math.sqrt(numel))], 1)
    error = (got - want).abs() / (norms[:, :, None] * others[:, None, :])
    assert error.max() <= limit


def with_bases(case):
    """The case with a base for each sample."""
    return {**case, "base": torch.randn(len(case["x"]), 2)}


def test_a_base_for_each_sample():
    case = with_bases(make(3, (3, 2, 41, 107)))
    found = ops.gram(**case)
    close(found, expected(case), 2 * 41 * 107)
    for i in range(3):
        one = {"branches": [b[i : i + 1] for b in case["branches"]], "base": case["base"][i]}
        assert torch.equal(ops.gram(x=case["x"][i : i + 1], **one)[0], found[i])


@pytest.mark.parametrize("kind", ["plain", "channels", "rows", "last", "cropped"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("branches", range(1, MAX_BRANCHES + 1))
def test_equals_the_reference(branches, dtype, kind):
    case = make(branches, dtype=dtype, kind=kind)
    close(ops.gram(**case), expected(case), 140)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("kind", ["plain", "channels", "last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(shape, kind, dtype):
    case = make(3, shape, dtype, kind if len(shape) == 4 else "plain")
    close(ops.gram(**case), expected(case), math.prod(shape[1:]))


def mixed(shape=(3, 4, 5, 7)):
    """Branches of every dtype, in memory in different ways; some deltas, some with a factor."""
    case = make(5, shape)
    dtypes, kinds = (
        (BF16, FP32, FP16, FP32, BF16),
        ("plain", "channels", "last", "plain", "cropped"),
    )
    case["branches"] = [
        layout(b.to(dtype), kind)
        for b, dtype, kind in zip(case["branches"], dtypes, kinds, strict=True)
    ]
    return {**case, "deltas": 0b01010, "factor": torch.randn(shape), "factored": 0b11000}


def test_mixed_dtypes_deltas_and_a_factor():
    for shape in ((3, 4, 5, 7), (2, 3, 77, 83)):
        case = mixed(shape)
        close(ops.gram(**case), expected(case), math.prod(shape[1:]))


@pytest.mark.parametrize("factored", [0b000, 0b010, 0b100, 0b110])
@pytest.mark.parametrize("deltas", [0b000, 0b010, 0b100, 0b110])
def test_deltas_and_factors(deltas, factored):
    case = make(3, (2, 3, 20, 30), BF16)
    case |= {"deltas": deltas, "factored": factored}
    case["factor"] = torch.randn(2, 3, 20, 30) if factored else None
    close(ops.gram(**case), expected(case), 1800)


def near(shape=(2, 4, 64, 64)):
    """Predictions that differ by 1e-4 of their norm."""
    case = make(3, shape)
    positive = case["branches"][0]
    case["branches"][1:] = [positive + 1e-4 * b for b in case["branches"][1:]]
    return case


def test_close_predictions():
    case = near()
    want = expected(case)
    close(ops.gram(**case), want, 4 * 64 * 64)
    # what it is for: products of the predictions themselves in fp32 lose those of their difference
    v = torch.stack([b.flatten(1) for b in case["branches"][:2]], 1)
    raw = (v @ v.mT).double()
    difference = raw[:, 0, 0] - 2 * raw[:, 0, 1] + raw[:, 1, 1]
    assert ((difference - want[:, 2, 2]).abs() / want[:, 2, 2]).min() > 1e-3


def cancelling(shape=(2, 4, 64, 64)):
    """A small image that is left of a noise 1,000 times larger."""
    case = make(1, shape)
    case["base"] = torch.tensor([1.0, -1000.0])
    case["x"] = 1000.0 * case["branches"][0] + 0.01 * torch.randn(shape)
    return case


def test_an_image_that_is_left_of_large_terms():
    case = cancelling()
    want = expected(case)
    close(ops.gram(**case), want, 4 * 64 * 64)
    plain = reference.gram(**case).double()
    assert ((plain - want)[:, 1, 1].abs() / want[:, 1, 1]).min() > 1e-6


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-3])
@pytest.mark.parametrize("numel", [64, 500, 4096, 100_001])
def test_roundings_that_all_go_the_same_way(numel, value):
    x = torch.full((1, numel), value)
    case = {"x": x, "branches": [x * 3, x * 1.7], "base": torch.tensor([0.3, 0.9])}
    close(ops.gram(**case), expected(case), numel, 1e-6)


def test_every_16_bit_number_is_read_as_torch_reads_it():
    for dtype in (BF16, FP16):
        every = torch.arange(65536).to(torch.int32).to(torch.uint16).view(dtype)
        every = every[every.isfinite()]
        for lane in range(16):  # one at a time: two of the largest have no sum in fp32
            lanes = torch.zeros(len(every), 16, dtype=dtype)
            lanes[:, lane] = every
            got = ops.gram(torch.zeros(lanes.shape), [lanes], torch.ones(2))
            assert torch.equal(got[:, 0, -1], every.double())


def test_a_sample_is_the_same_alone_and_on_any_number_of_threads():
    case = mixed((5, 3, 77, 83))
    whole = ops.gram(**case)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.gram(**case), whole)
    finally:
        torch.set_num_threads(threads)
    for i in range(5):
        one = {**case, **{name: case[name][i : i + 1] for name in ("x", "factor")}}
        one["branches"] = [b[i : i + 1] for b in case["branches"]]
        assert torch.equal(ops.gram(**one)[0], whole[i])


def test_strides_do_not_change_a_bit():
    plain = make(2, (2, 3, 40, 50))
    for kind in ("channels", "rows", "last", "cropped"):
        case = {**plain, "branches": [layout(b, kind) for b in plain["branches"]]}
        assert torch.equal(ops.gram(**case), ops.gram(**plain))


def test_nan_stays_in_its_sample_and_its_vector():
    case = make(3, (3, 2, 20, 20))
    case["branches"][1][2, 1, 19, 3] = torch.nan
    bad = ops.gram(**case).isnan()
    assert not bad[:2].any()
    assert bad[2, 2].all()
    assert bad[2].sum() == 5 + 3  # a row and a column


def test_base_may_be_a_view_of_the_table():
    case = make(2)
    table = torch.randn(4, tables.width(2))
    table[2, :2] = case["base"]
    assert torch.equal(ops.gram(**{**case, "base": table[2, :2]}), ops.gram(**case))


def test_nothing_adds_up_to_zero():
    empty = {"x": torch.zeros(2, 0), "branches": [torch.zeros(2, 0)], "base": torch.ones(2)}
    assert torch.equal(ops.gram(**empty), torch.zeros(2, 2, 3, dtype=torch.float64))
    none = make(2, (0, 4, 5, 7))
    assert ops.gram(**none).shape == (0, 3, 4)


BAD = [
    ("x", lambda c: c["x"].half(), "x is torch.float16"),
    ("x", lambda c: c["x"].transpose(2, 3), "x is"),
    ("x", lambda c: torch.zeros(3), r"x is torch.float32 of shape \(3,\)"),
    ("branches", lambda c: [], "branches are 0, but should be 1 to 8"),
    ("branches", lambda c: c["branches"] * 5, "branches are 10, but should be 1 to 8"),
    ("branches", lambda c: [c["branches"][0], c["branches"][1][:2]], r"branches\[1\].shape is \(2"),
    ("branches", lambda c: [b.double() for b in c["branches"]], r"branches\[0\].dtype is"),
    ("branches", lambda c: [c["branches"][0], c["branches"][1].to("meta")], r"\[1\] is on meta"),
    ("base", lambda c: torch.zeros(3), r"base is torch.float32 of shape \(3,\)"),
    ("base", lambda c: torch.zeros(7, 2), r"base is torch.float32 of shape \(7, 2\)"),
    ("base", lambda c: torch.zeros(2, dtype=torch.float64), "base is torch.float64"),
    ("base", lambda c: torch.zeros(2, 2)[:, 0], r"base is .* strides \(2,\)"),
    ("base", lambda c: torch.zeros(2, device="meta"), "base is .* on meta"),
    ("deltas", lambda c: 0b1, "deltas is 0b1, but it may have the bits 0b10"),
    ("deltas", lambda c: 0b100, "deltas is 0b100"),
    ("factored", lambda c: 0b10, "factored is 0b10, but factor is NoneType"),
    ("factor", lambda c: torch.zeros(3, 4, 5, 7), "factored is 0b0, but factor is Tensor"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_errors_name_the_argument(name, spoil, message):
    case = make(2)
    with pytest.raises(ValueError, match=message):
        ops.gram(**{**case, name: spoil(case)})


def test_a_factor_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"factor is torch\.float32 of shape"):
        ops.gram(**make(2), factor=torch.zeros(3, 4, 5), factored=0b10)


def raw(case):
    """The arguments of the op itself."""
    return (
        ops.as_planes(case["x"], 1),
        [ops.as_planes(b, 1) for b in case["branches"]],
        case["base"],
        case.get("deltas", 0),
        ops.as_planes(case["factor"], 1) if "factor" in case else None,
        case.get("factored", 0),
    )


@pytest.mark.parametrize("case", [make(2, kind="channels"), mixed()], ids=["plain", "mixed"])
def test_opcheck(case):
    torch.library.opcheck(torch.ops.fastguide.gram.default, raw(case))


def test_compiles_without_a_graph_break():
    case = make(2)

    def f(x, branches, base):
        return ops.gram(x, [b * 2 for b in branches], base)[:, :, :-1].diagonal(dim1=1, dim2=2) + 1

    want = f(**case)
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(**case), want)
