"""step on the CPU against the fp64 reference; the same cases run in
tests/ops/interpreted_step.py."""

import math

import pytest
import torch

from fastguide import ops, reference
from fastguide.ops import table as tables
from fastguide.ops.table import Column, Extra

EVALUATIONS = 3


def layout(tensor, kind):
    """The same values in another memory layout."""
    if kind == "channels":  # the second half of a two-headed output
        return torch.cat([torch.full_like(tensor, torch.nan), tensor], 1).chunk(2, 1)[1]
    if kind == "rows":  # a block of rows of a larger batch
        return torch.cat([tensor, torch.full_like(tensor, torch.nan)])[: len(tensor)]
    if kind == "last":
        return tensor.to(memory_format=torch.channels_last)
    if kind == "cropped":
        return torch.nn.functional.pad(tensor, (1, 2))[..., 1:-2]
    return tensor


def make(slots, branches, shape=(3, 4, 5, 7), dtype=torch.float32, kind="plain", broadcast=False):
    batch = shape[0]
    table = torch.randn(EVALUATIONS, tables.width(slots))
    table[:, Column.LOW], table[:, Column.HIGH] = -1.5, 1.2
    return {
        "state": torch.randn(slots, *shape),
        "branches": [layout(torch.randn(shape).to(dtype), kind) for _ in range(branches)],
        "weights": torch.randn(EVALUATIONS, 1 if broadcast else batch, branches + 2),
        "table": table,
        "evaluation": torch.tensor(1),
        "first_bad": torch.full((batch,), EVALUATIONS, dtype=torch.int32),
    }


def expected(case, noise=None, **extras):
    return reference.step(
        case["state"].double(),
        case["branches"],
        case["weights"][1],
        case["table"][1].double(),
        noise,
        **extras,
    )


def extras_of(case, kind):
    """Every optional part of an update: learned variance, a bound per sample, another image."""
    shape = case["state"].shape[1:]
    like = case["branches"][0]
    variance = layout(torch.rand(shape).mul(2).sub(1).to(like.dtype), kind)
    case["table"][:, Column.SPREAD] = 0.7
    return {
        "variance": variance,
        "bound": torch.rand(shape[0]) + 0.2,
        "extra": Extra.NEGATIVE,
    }


def mixed_of(case):
    """Every second branch is a delta of another dtype, and most are multiplied by a factor."""
    branches = [b.half() if k % 2 else b for k, b in enumerate(case["branches"])]
    deltas = sum(1 << k for k in range(1, len(branches), 2))
    factored = sum(1 << k for k in range(1, len(branches)) if k != 3)
    factor = torch.randn(case["state"].shape[1:]) if factored else None
    return {**case, "branches": branches}, {
        "deltas": deltas,
        "factor": factor,
        "factored": factored,
    }


def close(got, want, scale=1.0):
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=4e-6 * scale)


@pytest.mark.parametrize("kind", ["plain", "channels", "rows", "last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("slots", "branches"), [(1, 1), (1, 2), (2, 3), (4, 4), (8, 2)])
def test_equals_the_reference(slots, branches, dtype, kind):
    case = make(slots, branches, dtype=dtype, kind=kind)
    want, _ = expected(case)
    ops.step(**case)
    close(case["state"], want, slots)
    assert case["first_bad"].tolist() == [EVALUATIONS] * 3


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 3), (2, 1, 5), (5, 3, 1, 1), (2, 4, 64, 64), (1, 2, 3, 4, 5), (7, 513)],
)
@pytest.mark.parametrize("drawn", [True, False])
def test_any_shape_with_noise(shape, drawn):
    case = make(2, 2, shape)
    seeds = torch.arange(shape[0]) + 40
    noise = reference.noise(seeds, 1, math.prod(shape[1:])).view(shape)
    want, _ = expected(case, noise)
    ops.step(**case, **({"seeds": seeds} if drawn else {"noise": noise.float()}))
    close(case["state"], want, 2)


@pytest.mark.parametrize("kind", ["plain", "channels", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("slots", "branches"), [(1, 1), (2, 2), (3, 3)])
def test_variance_bound_and_extra(slots, branches, dtype, kind):
    case = make(slots, branches, dtype=dtype, kind=kind)
    noise = torch.randn(3, 4, 5, 7)
    extras = extras_of(case, kind)
    for part in ({}, *({name: value} for name, value in extras.items()), extras):
        for extra in Extra:
            now = {**case, "state": case["state"].clone()}
            chosen = {**part, "extra": extra}
            want, _ = expected(now, noise.double(), **chosen)
            ops.step(**now, noise=noise, **chosen)
            close(now["state"], want, 2 * slots)


@pytest.mark.parametrize("kind", ["plain", "channels", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("branches", [1, 2, 3, 5])
def test_deltas_and_factors(branches, dtype, kind):
    case, mixed = mixed_of(make(2, branches, dtype=dtype, kind=kind))
    for extra in Extra:
        now = {**case, "state": case["state"].clone()}
        want, _ = expected(now, **mixed, extra=extra)
        ops.step(**now, **mixed, extra=extra)
        close(now["state"], want, 4)


def test_a_given_delta_is_the_difference_and_a_factor_its_weight():
    case = make(1, 3)
    positive, first, second = case["branches"]
    given = {**case, "branches": [positive, positive - first, positive - second]}
    weights = case["weights"].clone()
    weights[..., 3] *= 2.5
    plain = {**case, "state": case["state"].clone(), "weights": weights}
    ops.step(**plain, extra=Extra.NEGATIVE)
    factor = torch.full_like(positive, 2.5)
    ops.step(**given, extra=Extra.NEGATIVE, deltas=0b110, factor=factor, factored=0b100)
    close(given["state"], plain["state"].double(), 4)


def test_the_share_of_x():
    case = make(1, 1)
    case["weights"][:, :, 0] = 0.0
    without = {**case, "state": case["state"].clone(), "table": case["table"].clone()}
    without["table"][:, Column.OF_X] = 0.0
    ops.step(**case)
    ops.step(**without)
    assert torch.equal(case["state"], without["state"])


def test_each_extra_changes_the_result():
    case = make(1, 2)
    base = {**case, "state": case["state"].clone()}
    ops.step(**base, noise=torch.ones(3, 4, 5, 7))
    for name, value in [*extras_of(case, "plain").items(), ("extra", Extra.UNCLAMPED)]:
        other = {**case, "state": case["state"].clone()}
        ops.step(**other, noise=torch.ones(3, 4, 5, 7), **{name: value})
        assert (other["state"] - base["state"]).abs().amax((0, 2, 3, 4)).min() > 1e-3, name


def test_variance_scales_drawn_noise_too():
    case = make(1, 1)
    extras = extras_of(case, "plain")
    seeds = torch.arange(3)
    noise = reference.noise(seeds, 1, 4 * 5 * 7).view(3, 4, 5, 7)
    want, _ = expected(case, noise, **extras)
    ops.step(**case, seeds=seeds, **extras)
    close(case["state"], want, 2)


def test_more_elements_than_one_run_and_one_thread_take():
    case = make(3, 3, (5, 3, 50, 41), broadcast=True)
    seeds = torch.arange(5)
    want, _ = expected(case, reference.noise(seeds, 1, 3 * 50 * 41).view(5, 3, 50, 41))
    ops.step(**case, seeds=seeds)
    close(case["state"], want, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_next_input_is_scaled_cast_and_repeated(dtype, copies):
    case = make(1, 2)
    _, want = expected(case)
    sentinel = torch.full((copies * 3 + 1, 4, 5, 7), 77.0, dtype=dtype)
    ops.step(**case, net_input=sentinel[:-1])
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(
        sentinel[:-1].double(), want.repeat(copies, 1, 1, 1), rtol=rounding, atol=1e-5
    )
    assert (sentinel[-1] == 77).all()
    exact = (case["table"][1, Column.INPUT_SCALE] * case["state"][0]).to(dtype)
    assert torch.equal(sentinel[:3], exact)  # the cast is torch's own, to the last bit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_are_torchs_for_every_kind_of_number(dtype):
    info = torch.finfo(dtype)
    special = [
        0.0,
        -0.0,
        info.max,
        -info.max,
        info.tiny,
        info.smallest_normal / 3,
        65519.0,
        65520.0,
    ]
    values = torch.cat([torch.tensor(special), torch.randn(2000) * torch.logspace(-9, 5, 2000)])
    x = values[None, None]
    table = torch.zeros(1, tables.width(1))
    table[0, Column.INPUT_SCALE], table[0, Column.MATRIX] = 1.0, 1.0
    bad = torch.ones(1, dtype=torch.int32)
    out = torch.empty(1, values.numel(), dtype=dtype)
    ops.step(x.clone(), [], torch.ones(1, 1, 2), table, torch.tensor(0), bad, net_input=out)
    assert torch.equal(out[0], values.to(dtype))
    # and the other way: a prediction of every half number is read as torch reads it
    every = torch.arange(65536).to(torch.int32).to(torch.uint16).view(dtype)
    every = every[every.isfinite()]
    table[0, Column.MATRIX :] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    table[0, Column.OF_PREDICTION], table[0, Column.LOW], table[0, Column.HIGH] = (
        1,
        -math.inf,
        math.inf,
    )
    state = torch.zeros(1, 1, every.numel())
    ops.step(state, [every[None]], torch.ones(1, 1, 2), table, torch.tensor(0), bad)
    assert torch.equal(state[0, 0], every.float())


def test_a_slot_that_is_not_read_does_not_leak_and_one_not_written_stays():
    case = make(3, 2)
    case["state"][2] = torch.nan
    tables.matrix(case["table"][1])[:, 2] = 0.0
    before = case["state"].clone()
    clean = {**case, "state": case["state"].clone()}
    clean["state"][2] = 0.0
    want, _ = expected(clean)
    ops.step(**case, reads=0b011, writes=0b001)
    close(case["state"][0], want[0], 3)
    assert torch.equal(case["state"][1], before[1])
    assert case["state"][2].isnan().all()


def test_without_branches_it_maps_the_slots():
    case = make(2, 0)
    want, _ = expected(case)
    ops.step(**case)
    close(case["state"], want, 2)


def test_weight_zero_is_off_to_the_bit():
    case = make(1, 2)
    case["weights"][:, :, 2] = 0.0
    alone = {**case, "state": case["state"].clone(), "branches": case["branches"][:1]}
    ops.step(**case)
    ops.step(**alone)
    assert torch.equal(case["state"], alone["state"])


def test_samples_have_their_own_weights():
    case = make(1, 2, (4, 2, 3, 3))
    full = {**case, "state": case["state"].clone()}
    ops.step(**full)
    for i in range(4):
        one = {
            **case,
            "state": case["state"][:, i : i + 1].clone(),
            "branches": [b[i : i + 1] for b in case["branches"]],
            "weights": case["weights"][:, i : i + 1].contiguous(),
            "first_bad": case["first_bad"][i : i + 1].clone(),
        }
        ops.step(**one)
        assert torch.equal(one["state"][:, 0], full["state"][:, i])


def each_of(case):
    """The case with an evaluation of its own for each sample, and the numbers of their noise; and
    what the reference makes of it.
    """
    batch, shape = case["state"].shape[1], case["state"].shape[1:]
    evaluation = torch.arange(batch).flip(0) % EVALUATIONS
    number, seeds = torch.arange(batch) + 7, torch.arange(batch) + 40
    weights = case["weights"].expand(-1, batch, -1)[evaluation, torch.arange(batch)]
    rows = case["table"].double()[evaluation].T.reshape(-1, batch, *[1] * (len(shape) - 1))
    noise = torch.cat(
        [
            reference.noise(seeds[i : i + 1], int(number[i]), math.prod(shape[1:]))
            for i in range(batch)
        ]
    )
    given = {**case, "evaluation": evaluation}
    want, copied = reference.step(
        case["state"].double(), case["branches"], weights, rows, noise.view(shape)
    )
    return given, {"seeds": seeds, "number": number}, want, copied


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize(("slots", "branches"), [(1, 2), (3, 0), (4, 3)])
def test_samples_at_evaluations_of_their_own(slots, branches, broadcast):
    case, how, want, copied = each_of(make(slots, branches, (4, 3, 9, 71), broadcast=broadcast))
    alone = {**case, "state": case["state"].clone()}
    net_input = torch.empty(8, 3, 9, 71)
    ops.step(**case, **how, net_input=net_input)
    close(case["state"], want, 2 * slots)
    close(net_input, copied.repeat(2, 1, 1, 1), 2 * slots)
    for i in range(4):
        e, number = int(case["evaluation"][i]), int(how["number"][i])
        one = {
            "state": alone["state"][:, i : i + 1].clone(),
            "branches": [b[i : i + 1] for b in case["branches"]],
            "weights": case["weights"][:, i * (not broadcast) :][:, :1].contiguous(),
            "table": case["table"],
            "evaluation": torch.tensor(e),
            "first_bad": torch.full((1,), EVALUATIONS, dtype=torch.int32),
        }
        ops.step(**one, noise=ops.noise([40 + i], (3, 9, 71), number))
        assert torch.equal(one["state"][:, 0], case["state"][:, i])


def test_what_is_not_finite_is_told_by_its_number():
    case, how, _, _ = each_of(make(1, 2, (4, 2, 20, 20)))
    case["branches"][1][2, 1, 19, 3] = torch.nan
    case["first_bad"][:] = 99
    ops.step(**case, **how)
    assert case["first_bad"].tolist() == [99, 99, 9, 99]


def test_nan_survives_the_clamp_and_is_reported():
    case = make(1, 2, (4, 2, 20, 20))
    case["branches"][1][2, 1, 19, 3] = torch.nan
    ops.step(**case)
    assert case["state"][0, 2, 1, 19, 3].isnan()
    assert case["state"].isnan().sum() == 1
    assert case["first_bad"].tolist() == [3, 3, 1, 3]
    later = {**case, "evaluation": torch.tensor(2)}
    ops.step(**later)
    assert later["first_bad"].tolist() == [3, 3, 1, 3]  # the first one stays


def test_infinity_is_reported_too():
    case = make(1, 1, (2, 3, 3, 3))
    case["table"][:, Column.LOW], case["table"][:, Column.HIGH] = -math.inf, math.inf
    case["branches"][0][1, 0, 0, 0] = math.inf
    ops.step(**case)
    assert case["first_bad"].tolist() == [3, 1]


BAD = [
    ("state", lambda c: c["state"].half(), "state is torch.float16"),
    ("state", lambda c: c["state"].transpose(2, 3), "state is"),
    ("state", lambda c: torch.zeros(9, 3, 4, 5, 7), "state has 9 slots"),
    ("branches", lambda c: [c["branches"][0], c["branches"][1][:2]], r"branches\[1\].shape is \(2"),
    (
        "branches",
        lambda c: [b.double() for b in c["branches"]],
        r"branches\[0\].dtype is torch.float64",
    ),
    ("table", lambda c: c["table"][:, :-1], "table is torch.float32 of shape"),
    ("weights", lambda c: c["weights"][:, :2], "weights is"),
    ("weights", lambda c: c["weights"][:, :, :2], "weights is"),
    ("evaluation", lambda c: torch.tensor([1]), "evaluation is"),
    ("evaluation", lambda c: torch.zeros(6).long()[::2], "evaluation has strides"),
    ("number", lambda c: torch.arange(3), "number is given, but evaluation is one"),
    ("first_bad", lambda c: torch.zeros(3), "first_bad is"),
    ("seeds", lambda c: torch.arange(2), "seeds is"),
    ("noise", lambda c: torch.zeros(3, 4, 5, 6), "noise is"),
    ("net_input", lambda c: torch.zeros(4, 4, 5, 7), "net_input is"),
    ("net_input", lambda c: torch.zeros(3, 4, 5, 7, dtype=torch.float64), "net_input is"),
    ("variance", lambda c: c["branches"][0].double(), "variance is torch.float64"),
    ("variance", lambda c: c["branches"][0][:2], r"variance is torch.float32 of shape \(2"),
    ("bound", lambda c: torch.ones(4), "bound is torch.float32 of shape"),
    ("extra", lambda c: 3, "extra is 3"),
    ("deltas", lambda c: 0b1, "deltas is 0b1, but it may have the bits 0b10"),
    ("factored", lambda c: 0b100, "factored is 0b100, but it may"),
    ("factored", lambda c: 0b10, "factored is 0b10, but factor is NoneType"),
    ("factor", lambda c: torch.zeros(3, 4, 5, 7), "factored is 0b0, but factor is Tensor"),
    ("table", lambda c: c["table"].to("meta"), "table is on meta, but state is on cpu"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), BAD)
def test_errors_name_the_argument(name, spoil, message):
    case = make(2, 2)
    before = case["state"].clone()
    with pytest.raises(ValueError, match=message):
        ops.step(**{**case, name: spoil(case)})
    assert torch.equal(case["state"], before)


def raw(case, number=None):
    """The arguments of the op itself."""
    return (
        ops.as_planes(case["state"], 2),
        [ops.as_planes(b, 1) for b in case["branches"]],
        case["weights"],
        case["table"],
        case["evaluation"],
        torch.arange(3),
        None,
        torch.empty(6, 4, 35),
        case["first_bad"],
        3,
        3,
        ops.as_planes(case["branches"][0], 1),
        torch.rand(3) + 0.5,
        1,
        0b10,
        torch.randn(3, 4, 35),
        0b10,
        number,
    )


def test_a_factor_of_another_shape_is_an_error():
    case = make(1, 2)
    for factor in (torch.zeros(3, 4, 5, 6), torch.zeros(3, 4, 5, 7).double()):
        with pytest.raises(ValueError, match="factor is torch"):
            ops.step(**case, factor=factor, factored=0b10)


def test_opcheck():
    torch.library.opcheck(torch.ops.fastguide.step.default, raw(make(2, 2, kind="channels")))


def test_raw_evaluations_and_numbers_protect_memory():
    case = {**make(2, 2), "evaluation": torch.tensor([0, 2, 1])}
    torch.ops.fastguide.step(*raw(case, torch.arange(3)))
    for evaluation, number in (
        (torch.tensor([0, EVALUATIONS, 1]), None),
        (torch.tensor([0, -1, 1]), None),
        (torch.tensor([0, 1]), None),
        (torch.tensor([0, 1, 2]), torch.arange(2)),
        (torch.tensor(0), torch.arange(3)),
    ):
        with pytest.raises(RuntimeError, match="step: "):
            torch.ops.fastguide.step(*raw({**case, "evaluation": evaluation}, number))


def test_compiles_without_a_graph_break():
    case, twin = make(2, 2), None
    twin = {**case, "state": case["state"].clone(), "first_bad": case["first_bad"].clone()}

    def f(state, branches, weights, table, evaluation, first_bad):
        ops.step(state, [b * 2 for b in branches], weights, table, evaluation, first_bad)
        return state[0] + 1

    out = torch.compile(f, fullgraph=True)(*case.values())
    ops.step(**{**twin, "branches": [b * 2 for b in twin["branches"]]})
    torch.testing.assert_close(out, twin["state"][0] + 1)
    torch.testing.assert_close(case["state"], twin["state"])
