"""The Triton kernel of `step` compiled for sm_80 and sm_90 by its own launcher; needs no GPU.

`pytest -rP tests/ops/test_step_compile.py` prints the registers of each case.
"""

import re
from collections import Counter

import pytest
import torch
from compiled import ARCHITECTURES, accesses, check_resources, compiler
from test_step import make

from fastguide import ops
from fastguide.kernels.step import step
from fastguide.ops.table import Extra

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

# slots, branches, dtype, noise, layout of the branches, copies of the next input
CASES = [
    (1, 0, FP32, "none", "plain", 0),
    (1, 1, BF16, "none", "plain", 1),
    (1, 2, BF16, "none", "plain", 2),
    (1, 2, FP32, "drawn", "plain", 2),
    (1, 3, FP16, "given", "last", 3),
    (2, 0, FP16, "drawn", "plain", 1),
    (2, 1, FP32, "given", "cropped", 2),
    (2, 2, BF16, "drawn", "last", 3),
    (2, 4, FP16, "none", "channels", 0),
    (3, 1, FP16, "drawn", "last", 0),
    (3, 2, BF16, "given", "channels", 2),
    (3, 3, FP32, "none", "last", 1),
    (4, 2, FP16, "given", "cropped", 1),
    (4, 3, BF16, "drawn", "channels", 2),
    (5, 4, FP32, "given", "plain", 3),
    (6, 1, BF16, "none", "cropped", 3),
    (7, 4, FP32, "drawn", "last", 1),
    (8, 0, BF16, "given", "plain", 2),
    (8, 3, FP16, "none", "cropped", 0),
    (8, 4, BF16, "drawn", "last", 3),
]


def name(case) -> str:
    """The case as pytest prints it."""
    return "-".join(str(value).removeprefix("torch.") for value in case)


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def compiled(request):
    """`compiled(*arguments)`: the kernel that the launcher `step` would run on these arguments."""
    with compiler(step, request.param) as kernels:
        yield lambda *arguments: kernels(*arguments)[0]


def arguments(case, shape=(2, 4, 16, 16), reads=0xFF, writes=0xFF):
    """The launcher's arguments for a case; 16 divides every size and address for this shape."""
    slots, branches, dtype, noise, layout, copies = case
    inputs = make(slots, branches, shape, dtype, layout)
    return (
        ops.as_planes(inputs["state"], 2),
        [ops.as_planes(branch, 1) for branch in inputs["branches"]],
        inputs["weights"],
        inputs["table"],
        inputs["evaluation"],
        torch.arange(shape[0]) if noise == "drawn" else None,
        ops.as_planes(torch.empty(shape), 1) if noise == "given" else None,
        ops.as_planes(torch.empty(copies * shape[0], *shape[1:], dtype=dtype), 1)
        if copies
        else None,
        inputs["first_bad"],
        reads,
        writes,
        None,
        None,
        Extra.NONE,
        0,
        None,
        0,
    )


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (2, 3, 5, 7)], ids=["aligned", "odd"])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_step_fits_in_registers(case, shape, compiled, tmp_path):
    # of the 65,536 registers 80 leave room for 24 warps, and 64 for 32
    limit = 64 if case[0] <= 3 and case[1] <= 2 else 80
    check_resources(compiled(*arguments(case, shape)), limit, tmp_path)


@pytest.mark.parametrize("extra", [Extra.UNCLAMPED, Extra.NEGATIVE])
@pytest.mark.parametrize("case", [(1, 2, BF16, "drawn", "channels", 2), CASES[-1]], ids=name)
def test_step_with_every_extra_fits_in_registers(case, extra, compiled, tmp_path):
    plain = arguments(case)
    variance, bound = plain[1][0], torch.ones(2)
    kernel = compiled(*plain[:-6], variance, bound, extra, 0, None, 0)
    # everything at once, 8 slots and 6 images, leaves room for 20 warps
    check_resources(kernel, 96 if case[0] == 8 else 80, tmp_path)
    want = accesses(compiled(*plain))
    found = accesses(kernel)
    wide = {kind: n for kind, n in found.items() if " v" in kind}
    if "channels" in case:  # one more branch to read, and all else stays
        assert wide == {**{k: n for k, n in want.items() if " v" in k}, "ld v2.b32": 3}


@pytest.mark.parametrize("case", [(1, 2, BF16, "drawn", "channels", 2), CASES[-1]], ids=name)
def test_step_with_deltas_and_a_factor(case, compiled, tmp_path):
    plain = arguments(case)
    factor = torch.randn(plain[0].shape[1:])
    everything = (1 << case[1]) - 2
    kernel = compiled(*plain[:-3], everything, factor, everything)
    check_resources(kernel, 96 if case[0] == 8 else 64, tmp_path)
    want, found = accesses(compiled(*plain)), accesses(kernel)
    assert found["ld v4.b32"] == want["ld v4.b32"] + 1  # the factor, and all else stays
    assert sum(found.values()) == sum(want.values()) + 1


@pytest.mark.parametrize("case", [(1, 2, BF16, "drawn", "channels", 2), CASES[-1]], ids=name)
def test_step_with_an_evaluation_for_each_sample(case, compiled, tmp_path):
    plain = arguments(case)
    each = (*plain[:4], torch.zeros(2, dtype=torch.int64), *plain[5:], torch.arange(2))
    kernel = compiled(*each)
    check_resources(kernel, 80, tmp_path)
    want, found = accesses(compiled(*plain)), accesses(kernel)
    assert sum(found.values()) == sum(want.values()) + 1  # the number, and all else stays


def test_step_with_offsets_of_64_bits(compiled, tmp_path):
    small = arguments((1, 1, FP32, "drawn", "plain", 0))
    x = torch.zeros(1, 1, 1, 1).expand(1, 1, 4, 2**29)  # 2^31 elements
    kernel = compiled(x, [x[0].transpose(1, 2)], *small[2:])
    check_resources(kernel, 64, tmp_path)


@pytest.mark.parametrize("case", [c for c in CASES if c[4] in ("plain", "channels")], ids=name)
def test_aligned_step_moves_four_elements_at_once(case, compiled):
    slots, branches, dtype, noise, _, copies = case
    kernel = compiled(*arguments(case))
    four = "v4.b32" if dtype == FP32 else "v2.b32"  # a quarter of a line of the network's dtype
    want = Counter({"ld v4.b32": slots + (noise == "given"), "st v4.b32": slots})
    want.update({f"ld {four}": branches, f"st {four}": copies})
    found = accesses(kernel)
    assert {kind: n for kind, n in found.items() if " v" in kind} == +want
    # all else is one number for many elements: the evaluation, a seed, weights, the table's row
    row = slots * (slots + 1 + (noise != "none")) + 4 * (branches > 0) + (copies > 0)
    scalars = sum(n for kind, n in found.items() if " v" not in kind)
    weights = branches + (branches > 0)  # x's share too
    assert scalars == 1 + (noise == "drawn") + weights + row
    assert kernel.metadata.shared == 0  # no thread waits for another


def test_step_costs_only_the_slots_in_reads_and_writes(compiled):
    case = (4, 2, BF16, "none", "plain", 0)
    found = accesses(compiled(*arguments(case, reads=0b0011, writes=0b0101)))
    assert (found["ld v4.b32"], found["st v4.b32"]) == (2, 2)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_step_keeps_nan_and_rounds_to_nearest(case, compiled):
    """What the interpreter does on its own account, whatever the kernel says."""
    _, branches, dtype, _, _, copies = case
    ptx = compiled(*arguments(case)).asm["ptx"]
    clamps = set(re.findall(r"\b(?:max|min)\.(?:NaN\.)?f32", ptx))
    assert clamps == ({"max.NaN.f32", "min.NaN.f32"} if branches else set())
    casts = set(re.findall(r"\bcvt\.\w+\.b?f16\w*\.f32", ptx))
    kind = {BF16: {"cvt.rn.bf16x2.f32"}, FP16: {"cvt.rn.f16x2.f32"}, FP32: set()}[dtype]
    assert casts == (kind if copies else set())
