"""The Triton kernels of `attention_colsum` compiled for sm_80 and sm_90; needs no GPU.

`pytest -rP tests/ops/test_attention_colsum_compile.py` prints the registers of each case.
"""

import re

import pytest
import torch
from compiled import ARCHITECTURES, check_resources, compiler

from fastguide.kernels.attention_colsum import attention_colsum

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
SHARED = 99 * 1024  # bytes of a block on sm_86, sm_89 and sm_120; more on sm_80 and sm_90


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda number: f"sm_{number}")
@pytest.mark.parametrize("tokens", [(64, 64), (37, 300)], ids=["aligned", "odd"])
@pytest.mark.parametrize(
    ("dtype", "dim"),
    [
        *((FP32, dim) for dim in (8, 64, 80, 256)),
        *((FP16, dim) for dim in (16, 33, 80, 256)),
        *((BF16, dim) for dim in (64, 128, 160)),
    ],
    ids=str,
)
def test_fits_in_registers(dtype, dim, tokens, architecture, tmp_path):
    q, k = (torch.empty(2, count, 3 * 4, dim, dtype=dtype)[:, :, :4] for count in tokens)
    with compiler(attention_colsum, architecture) as compiled:
        kernels = compiled(q.transpose(1, 2), k.transpose(1, 2), dim**-0.5)
    assert [kernel.name for kernel in kernels] == ["row_softmax_kernel", "column_sums_kernel"]
    for kernel in kernels:
        print(f"{kernel.metadata.shared} bytes of shared memory")
        assert kernel.metadata.shared <= SHARED
        check_resources(kernel, 255, tmp_path)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda number: f"sm_{number}")
@pytest.mark.parametrize(
    ("dtype", "kind"), [(FP32, "tf32"), (BF16, "bf16"), (FP16, "f16")], ids=str
)
def test_multiplies_on_tensor_cores(dtype, kind, architecture):
    q = torch.empty(1, 2, 64, 64, dtype=dtype)
    with compiler(attention_colsum, architecture) as compiled:
        for kernel in compiled(q, q, 0.125):
            products = set(re.findall(r"mma\S*?\.(tf32|bf16|f16)\b", kernel.asm["ptx"]))
            assert products == {kind}
