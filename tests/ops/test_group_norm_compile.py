"""The Triton kernels of `group_norm` and its gradient compiled for sm_80 and sm_90 by their
launchers; needs no GPU.

`pytest -rP tests/ops/test_group_norm_compile.py` prints the registers of each case.
"""

import pytest
import torch
from compiled import ARCHITECTURES, accesses, check_resources, compiler
from test_group_norm import BF16, EPS, FP16, FP32, make

from fastguide.kernels.group_norm import group_norm
from fastguide.kernels.group_norm_backward import group_norm_backward

# rows, tokens, channels, groups; the last has every size that Triton takes for a constant
SIZES = [(2, 1024, 64, 32), (2, 4096, 320, 32), (1, 256, 2560, 32), (2, 77, 34, 2), (1, 9, 2048, 1)]
ONES = (1, 1, 1, 1)
# of the 65,536 registers: with four warps a program, 80 leave room for 24 warps
LIMIT = 80


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def architecture(request):
    return request.param


def kernels(architecture, size, dtype, silu):
    """Those of the forward and of the backward pass, in order."""
    case = make(size, dtype, silu=silu)
    rows, _, channels, groups = size
    case["gamma"] = torch.ones(rows, channels)
    with compiler(group_norm, architecture) as compiled:
        forward = compiled(case["tokens"], case["gamma"], case["beta"], groups, EPS, silu)
    mean = torch.zeros(rows, groups)
    arguments = (case["tokens"], case["tokens"], mean, mean, case["gamma"], case["beta"], silu)
    with compiler(group_norm_backward, architecture) as compiled:
        return forward, compiled(*arguments)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("size", [*SIZES, ONES], ids=str)
def test_group_norm_fits_in_registers(size, dtype, silu, architecture, tmp_path):
    forward, backward = kernels(architecture, size, dtype, silu)
    for kernel in (*forward, *backward):
        check_resources(kernel, LIMIT, tmp_path)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_aligned_tokens_are_read_sixteen_bytes_at_once(size, dtype, architecture):
    (moments, _, normalise), (slopes, _, gradient) = kernels(architecture, size, dtype, True)
    for kernel, tensors in ((moments, 1), (normalise, 1), (slopes, 2), (gradient, 2)):
        found = accesses(kernel)
        assert found["ld v4.b32"] >= 2 * tensors * (2 if dtype == FP32 else 1)
        assert not {"ld b16", "st b16", "ld v2.b16"} & set(found)
    assert accesses(normalise)["st v4.b32"] == (4 if dtype == FP32 else 2)
