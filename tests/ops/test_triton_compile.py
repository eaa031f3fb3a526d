"""Every Triton kernel of the package is compiled for sm_80 and sm_90 by a test of its op."""

import re
from pathlib import Path

from fastguide.kernels import tuning

# kernel -> the test file that compiles it and counts its registers
COMPILED = {
    "blur_kernel": "test_blur_compile.py",
    "column_sums_kernel": "test_attention_colsum_compile.py",
    "products_kernel": "test_gram_compile.py",
    "slopes_kernel": "test_group_norm_compile.py",
    "slope_sums_kernel": "test_group_norm_compile.py",
    "moments_kernel": "test_group_norm_compile.py",
    "statistics_kernel": "test_group_norm_compile.py",
    "normalise_kernel": "test_group_norm_compile.py",
    "gradient_kernel": "test_group_norm_compile.py",
    "row_softmax_kernel": "test_attention_colsum_compile.py",
    "step_kernel": "test_step_compile.py",
    "sums_kernel": "test_gram_compile.py",
}


def test_every_kernel_is_compiled():
    folder = Path(tuning.__file__).parent
    kernels = re.findall(r"def (\w+_kernel)\(", "".join(p.read_text() for p in folder.glob("*.py")))
    assert sorted(kernels) == sorted(COMPILED)
    for name in COMPILED.values():
        text = Path(__file__).with_name(name).read_text()
        assert "check_resources(" in text
        assert "ARCHITECTURES" in text
