"""The Triton kernel of `step` against the fp64 reference, run by Triton's interpreter
(test_triton.py).
"""

import math

import pytest
import torch
import triton
import triton.language as tl
from test_step import EVALUATIONS, close, each_of, expected, extras_of, make, mixed_of

import fastguide as fg
from fastguide import ops, reference
from fastguide.kernels import philox, tuning
from fastguide.kernels.step import step
from fastguide.ops import table as tables
from fastguide.ops.table import Column, Extra

SENTINEL = 77.0


@pytest.fixture(params=[64, tuning.DEFAULTS["step"]["BLOCK"]])
def block(request, monkeypatch):
    """Blocks smaller and larger than the samples of most tests."""
    monkeypatch.setitem(tuning.DEFAULTS, "step", {"BLOCK": request.param, "num_warps": 4})
    return request.param


def guarded(tensor):
    """The same tensor in a larger buffer, and the buffer's end, which no kernel may write."""
    buffer = torch.full((tensor.numel() + 1024,), SENTINEL, dtype=tensor.dtype)
    view = buffer[: tensor.numel()].view(tensor.shape)
    return view.copy_(tensor), buffer[tensor.numel() :]


def launch(
    case,
    seeds=None,
    noise=None,
    net_input=None,
    reads=None,
    writes=None,
    variance=None,
    bound=None,
    extra=Extra.NONE,
    deltas=0,
    factor=None,
    factored=0,
    number=None,
):
    """ops.step as it runs on a GPU; every output lies before a sentinel."""
    state, state_end = guarded(case["state"])
    bad, bad_end = guarded(case["first_bad"])
    ends = [state_end, bad_end]
    if net_input is not None:
        net_input, input_end = guarded(net_input)
        ends.append(input_end)
    everything = (1 << len(state)) - 1
    step(
        ops.as_planes(state, 2),
        [ops.as_planes(branch, 1) for branch in case["branches"]],
        case["weights"],
        case["table"],
        case["evaluation"],
        seeds,
        None if noise is None else ops.as_planes(noise, 1),
        None if net_input is None else ops.as_planes(net_input, 1),
        bad,
        everything if reads is None else reads,
        everything if writes is None else writes,
        None if variance is None else ops.as_planes(variance, 1),
        bound,
        extra,
        deltas,
        None if factor is None else ops.as_planes(factor, 1),
        factored,
        number,
    )
    assert all((end == SENTINEL).all() for end in ends)
    return state, net_input, bad.tolist()


def any_noise(kind, shape):
    """The arguments for noise of a kind, and the same noise in fp64."""
    seeds = torch.arange(shape[0]) + 2**40
    if kind == "drawn":
        return {"seeds": seeds}, reference.noise(seeds, 1, math.prod(shape[1:])).view(shape)
    if kind == "given":
        noise = torch.randn(shape)
        return {"noise": noise}, noise.double()
    return {}, None


@pytest.mark.parametrize("kind", ["plain", "channels", "rows", "last", "cropped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("slots", "branches"), [(1, 1), (1, 2), (2, 3), (3, 4), (8, 2)])
def interpreted_step_equals_the_reference(slots, branches, dtype, kind):
    case = make(slots, branches, (2, 3, 5, 7), dtype, kind)
    want, _ = expected(case)
    state, _, bad = launch(case)
    close(state, want, slots)
    assert bad == [EVALUATIONS] * 2


@pytest.mark.parametrize("noise", ["none", "drawn", "given"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 3), (2, 1, 5), (5, 3, 1, 1), (3, 3, 5, 7), (2, 4, 16, 16), (1, 2, 3, 4, 5)],
)
def interpreted_any_shape_with_noise(shape, noise, block):
    case = make(2, 2, shape)
    arguments, values = any_noise(noise, shape)
    want, _ = expected(case, values)
    close(launch(case, **arguments)[0], want, 2)


@pytest.mark.parametrize("kind", ["plain", "channels", "last"])
@pytest.mark.parametrize("noise", ["drawn", "given"])
@pytest.mark.parametrize(("slots", "branches"), [(1, 1), (2, 2), (3, 3)])
def interpreted_variance_bound_and_extra(slots, branches, noise, kind):
    shape = (2, 3, 5, 7)
    case = make(slots, branches, shape, torch.bfloat16, kind)
    arguments, values = any_noise(noise, shape)
    extras = extras_of(case, kind)
    for part in ({}, *({name: value} for name, value in extras.items()), extras):
        for extra in Extra:
            chosen = {**part, "extra": extra}
            want, _ = expected(case, values, **chosen)
            close(launch(case, **arguments, **chosen)[0], want, 2 * slots)


@pytest.mark.parametrize("kind", ["plain", "channels", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("branches", [1, 2, 3, 5])
def interpreted_deltas_and_factors(branches, dtype, kind):
    case, mixed = mixed_of(make(2, branches, (2, 3, 5, 7), dtype, kind))
    for extra in Extra:
        want, _ = expected(case, **mixed, extra=extra)
        close(launch(case, **mixed, extra=extra)[0], want, 4)


@pytest.mark.parametrize("kind", ["plain", "last"])
def interpreted_several_blocks_with_broadcast_weights(kind):
    shape = (3, 3, 31, 37)
    case = make(3, 3, shape, torch.bfloat16, kind, broadcast=True)
    arguments, values = any_noise("drawn", shape)
    want, _ = expected(case, values)
    close(launch(case, **arguments)[0], want, 3)


@pytest.mark.parametrize("noise", ["none", "drawn", "given"])
@pytest.mark.parametrize("slots", [1, 2, 8])
def interpreted_without_branches_it_maps_the_slots(slots, noise):
    case = make(slots, 0)
    arguments, values = any_noise(noise, case["state"].shape[1:])
    want, _ = expected(case, values)
    close(launch(case, **arguments)[0], want, slots)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("copies", [1, 2, 3])
def interpreted_copies_are_scaled_and_cast(dtype, copies, block):
    case = make(2, 2)
    _, want = expected(case)
    _, copied, _ = launch(case, net_input=torch.empty(copies * 3, 4, 5, 7, dtype=dtype))
    # the interpreter cuts bfloat16 off where a GPU rounds it (tests/ops/test_step_compile.py)
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-11}[dtype]
    want = want.repeat(copies, 1, 1, 1)
    torch.testing.assert_close(copied.double(), want, rtol=rounding + 2e-6, atol=1e-5)


@pytest.mark.parametrize("broadcast", [False, True])
def interpreted_samples_at_evaluations_of_their_own(broadcast, block):
    case, how, want, copied = each_of(make(2, 3, (3, 3, 5, 7), broadcast=broadcast))
    case["branches"][1][2, 0, 0, 0] = torch.nan
    case["first_bad"][:] = 99
    state, net_input, bad = launch(case, **how, net_input=torch.empty(3, 3, 5, 7))
    close(state[:, :2], want[:, :2], 4)
    close(net_input[:2], copied[:2], 4)
    assert bad == [99, 99, 9]


def interpreted_a_slot_not_read_does_not_leak_and_one_not_written_stays(block):
    case = make(3, 2)
    case["state"][2] = torch.nan
    clean = {**case, "state": case["state"].nan_to_num(0.0)}
    want, _ = expected(clean)
    state, _, bad = launch(case, reads=0b011, writes=0b001)
    close(state[0], want[0], 3)
    assert torch.equal(state[1], case["state"][1])
    assert state[2].isnan().all()
    assert bad == [EVALUATIONS] * 3


def interpreted_a_slot_is_read_before_it_is_written():
    case = make(3, 1)
    swap = tables.matrix(case["table"][1])
    swap[:] = torch.eye(3, 6).roll(1, 0)  # x from slot 2, slot 1 from x, slot 2 from slot 1
    assert torch.equal(launch(case)[0], case["state"].roll(1, 0))


def interpreted_weight_zero_is_off_to_the_bit():
    case = make(1, 2)
    case["weights"][:, :, 2] = 0.0
    alone = {**case, "branches": case["branches"][:1]}
    assert torch.equal(launch(case)[0], launch(alone)[0])


def interpreted_nan_survives_the_clamp_and_is_reported(block):
    case = make(1, 2, (4, 2, 20, 20))
    case["branches"][1][2, 1, 19, 3] = torch.nan
    state, _, bad = launch(case)
    assert state[0, 2, 1, 19, 3].isnan()
    assert state.isnan().sum() == 1
    assert bad == [EVALUATIONS, EVALUATIONS, 1, EVALUATIONS]
    case["first_bad"][:] = 0
    assert launch(case)[2] == [0] * 4  # the first one stays


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def interpreted_infinity_is_reported_too(value):
    case = make(1, 1, (2, 3, 3, 3))
    case["table"][:, Column.LOW], case["table"][:, Column.HIGH] = -math.inf, math.inf
    case["branches"][0][1, 0, 0, 0] = value
    assert launch(case)[2] == [EVALUATIONS, 1]


def interpreted_what_lies_past_a_sample_is_not_reported():
    case = make(1, 1, (2, 3, 3, 3))
    case["table"][1, Column.OF_X] = math.inf  # clamped for each x; NaN for the zeros of no sample
    state, _, bad = launch(case)
    assert state.isfinite().all()
    assert bad == [EVALUATIONS] * 2


@pytest.mark.parametrize("seed", [0, 1, 12345678901234, 2**63 - 1])
@pytest.mark.parametrize("numel", [1, 105, 1500])
def interpreted_noise_is_that_of_the_cpu(seed, numel, block):
    case = make(1, 0, (1, numel))
    case["table"][1] = torch.tensor([0.0] * 8 + [1.0, 0.0])  # x becomes the noise
    state, _, _ = launch(case, seeds=torch.tensor([seed]))
    torch.testing.assert_close(state[0], fg.noise([seed], (numel,), 1), rtol=1e-6, atol=1e-6)


@triton.jit
def words_kernel(out_ptr, in_ptr):
    at = tl.arange(0, 8)
    c0, c1 = tl.load(in_ptr + at).to(tl.uint32), tl.load(in_ptr + 8 + at).to(tl.uint32)
    c2, c3 = tl.load(in_ptr + 16 + at).to(tl.uint32), tl.load(in_ptr + 24 + at).to(tl.uint32)
    k0, k1 = tl.load(in_ptr + 32 + at).to(tl.uint32), tl.load(in_ptr + 40 + at).to(tl.uint32)
    c0, c1, c2, c3 = philox.philox4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + at, c0.to(tl.int64))
    tl.store(out_ptr + 8 + at, c1.to(tl.int64))
    tl.store(out_ptr + 16 + at, c2.to(tl.int64))
    tl.store(out_ptr + 24 + at, c3.to(tl.int64))


def interpreted_philox_equals_the_reference():
    words = torch.randint(2**32, (6, 8))
    words[:, 0], words[:, 1] = 0, 2**32 - 1
    out = torch.zeros(4, 8, dtype=torch.int64)
    words_kernel[(1,)](out, words)
    assert torch.equal(out, torch.stack(reference.philox4x32(words[:4], words[4:])))
