"""The Triton kernels of `gram` compiled for sm_80 and sm_90 by their launcher; needs no GPU.

`pytest -rP tests/ops/test_gram_compile.py` prints the registers of each case.
"""

from collections import Counter

import pytest
import torch
from compiled import ARCHITECTURES, accesses, check_resources, compiler
from test_gram import BF16, FP16, FP32, make, mixed, raw

from fastguide.kernels.gram import gram

# branches, dtype, layout, deltas, factored
CASES = [
    (1, FP32, "plain", 0, 0),
    (2, FP32, "plain", 0, 0),
    (2, BF16, "channels", 0, 0),
    (2, FP16, "last", 0, 0b10),
    (3, BF16, "plain", 0b100, 0b110),
    (4, FP32, "cropped", 0, 0b1000),
    (6, BF16, "channels", 0, 0),
    (6, FP32, "plain", 0b100000, 0b10),
    (8, FP16, "plain", 0, 0b10),
    (8, FP32, "last", 0, 0),
]
# of the 65,536 registers of one-warp programs: 64 leave room for 32, as many as there may be
LIMITS = {1: 64, 2: 64, 3: 72, 4: 96, 6: 128, 8: 168}


def name(case) -> str:
    """The case as pytest prints it."""
    return "-".join(str(value).removeprefix("torch.") for value in case)


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def compiled(request):
    """`compiled(*arguments)`: the two kernels that the launcher would run on these arguments."""
    with compiler(gram, request.param) as kernels:
        yield kernels


def arguments(case, shape=(2, 4, 16, 16)):
    """The launcher's arguments for a case; 16 divides every size and address for this shape."""
    branches, dtype, kind, deltas, factored = case
    inputs = {**make(branches, shape, dtype, kind), "deltas": deltas, "factored": factored}
    if factored:
        inputs["factor"] = torch.randn(shape)
    return raw(inputs)


def test_gram_with_a_base_for_each_sample(compiled, tmp_path):
    x, branches, _, *others = arguments(CASES[3])
    products, _ = compiled(x, branches, torch.ones(2, 2), *others)
    check_resources(products, LIMITS[2], tmp_path)


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (2, 3, 5, 7)], ids=["aligned", "odd"])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_gram_fits_in_registers(case, shape, compiled, tmp_path):
    products, sums = compiled(*arguments(case, shape))
    check_resources(products, LIMITS[case[0]], tmp_path)
    check_resources(sums, 64, tmp_path)


@pytest.mark.parametrize("case", [c for c in CASES if c[2] in ("plain", "channels")], ids=name)
def test_aligned_gram_reads_four_elements_at_once(case, compiled):
    branches, dtype, _, _, factored = case
    products, _ = compiled(*arguments(case))
    four = "v4.b32" if dtype == FP32 else "v2.b32"
    want = Counter({"ld v4.b32": 1 + bool(factored)})
    want.update({f"ld {four}": branches})
    found = accesses(products)
    unrolled = 2 if branches <= 4 else 1
    wide = {kind: n for kind, n in found.items() if " v" in kind}
    assert wide == {kind: unrolled * n for kind, n in want.items()}
    entries = (branches + 1) * (branches + 4) // 2
    assert {k: n for k, n in found.items() if " v" not in k} == {"ld b32": 2, "st b32": entries}
    assert products.metadata.shared == 0  # no thread waits for another


def test_gram_of_mixed_dtypes_fits_in_registers(compiled, tmp_path):
    for kernel in compiled(*raw(mixed())):
        check_resources(kernel, 136, tmp_path)


def test_gram_sums_many_chunks_without_spills(compiled, tmp_path):
    for branches in (1, 2, 6, 8):
        x = torch.zeros(1, 1, 1).expand(1, 4, 2**20)
        _, sums = compiled(x, [x] * branches, torch.ones(2), 0, None, 0)
        check_resources(sums, 128, tmp_path)


def test_gram_with_offsets_of_64_bits(compiled, tmp_path):
    x = torch.zeros(1, 1, 1).expand(1, 4, 2**29)  # 2^31 elements
    products, _ = compiled(x, [x.transpose(1, 2)], torch.ones(2), 0, None, 0)
    check_resources(products, 80, tmp_path)
