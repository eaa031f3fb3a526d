"""The Triton kernels of `attention_colsum` compiled for sm_80 and sm_90; needs no GPU.

`pytest -rP tests/test_attention_colsum_compile.py` prints the registers of each case.
"""

import pytest
import torch
from compiled import ARCHITECTURES, check_resources, compiler

from fastguide.kernels.attention_colsum import attention_colsum

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
MOST = 227 * 1024  # bytes of shared memory of a block on sm_90
LEAST = 99 * 1024  # on sm_86 and sm_89


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda number: f"sm_{number}")
@pytest.mark.parametrize("tokens", [(64, 64), (37, 300)], ids=["aligned", "odd"])
@pytest.mark.parametrize(
    ("dtype", "dim"),
    [(FP32, 8), (FP32, 64), (FP32, 80), (FP32, 256)]
    + [(BF16, 16), (BF16, 64), (FP16, 80), (BF16, 128), (BF16, 160), (FP16, 256), (BF16, 33)],
    ids=str,
)
def test_fits_in_registers(dtype, dim, tokens, architecture, tmp_path):
    q, k = (torch.empty(2, count, 3 * 4, dim, dtype=dtype)[:, :, :4] for count in tokens)
    with compiler(attention_colsum, architecture) as compiled:
        kernels = compiled(q.transpose(1, 2), k.transpose(1, 2), dim**-0.5)
    assert [kernel.name for kernel in kernels] == ["log_sum_exp_kernel", "column_sums_kernel"]
    for kernel in kernels:
        print(f"{kernel.metadata.shared} bytes of shared memory")
        assert kernel.metadata.shared <= LEAST
        check_resources(kernel, 255, tmp_path)
