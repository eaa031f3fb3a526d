"""The Triton kernel of `blur` compiled for sm_80 and sm_90 by its own launcher; needs no GPU.

`pytest -rP tests/ops/test_blur_compile.py` prints the registers of each case.
"""

import pytest
import torch
from compiled import ARCHITECTURES, accesses, check_resources, compiler
from pairs import pairs
from test_blur import BF16, FP16, FP32, make

from fastguide.kernels import blur as module
from fastguide.kernels.blur import blur
from fastguide.ops.blur import dense_like

# the matrix unit's instruction, which only whole warp groups of sm_90 have
UNITS = {80: "mma.sync.aligned", 90: "wgmma.mma_async"}


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def compiled(request):
    """`compiled(x, sigma, grid)`: the architecture, and the kernels that the launcher would run."""
    with compiler(blur, request.param) as kernels:

        def launch(x, sigma, grid):
            sigmas, value = (sigma, 0.0) if isinstance(sigma, torch.Tensor) else (None, sigma)
            both = value if isinstance(value, tuple) else (value, value)
            return request.param, kernels(dense_like(x), x, sigmas, *both, *grid, 0)

        yield launch


SIZES = [((64, 64), 320), ((31, 33), 13), ((8, 200), 4)]


@pytest.mark.parametrize(
    ("size", "kind", "dtype"), pairs(SIZES, ["channels", "pixels", "qkv"], [FP32, BF16, FP16])
)
def test_blur_does_not_spill(size, kind, dtype, compiled, tmp_path):
    grid, channels = size
    sigma = torch.ones(2) if dtype == BF16 else 3.0
    _, kernels = compiled(make(grid, channels, dtype, kind), sigma, grid)
    assert len(kernels) == 2
    for kernel in kernels:
        check_resources(kernel, 255, tmp_path)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_aligned_blur_leaves_room_for_two_blocks(dtype, compiled, tmp_path):
    for kernel in compiled(make((64, 64), 320, dtype), 3.0, (64, 64))[1]:
        check_resources(kernel, 65536 // (2 * 8 * 32), tmp_path)
        assert kernel.metadata.shared <= 32 * 1024


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_aligned_blur_moves_16_bytes_at_once_and_multiplies_on_tensor_cores(dtype, compiled):
    architecture, kernels = compiled(make((64, 64), 320, dtype), 3.0, (64, 64))
    for kernel in kernels:
        assert set(accesses(kernel)) == {"ld v4.b32", "st v4.b32"}
        assert UNITS[architecture] in kernel.asm["ptx"]


def test_a_short_axis_is_skipped(compiled):
    assert len(compiled(make((1, 64), 16), 3.0, (1, 64))[1]) == 1
    assert len(compiled(make((64, 1), 16), 3.0, (64, 1))[1]) == 1


def test_an_axis_that_stays_is_skipped(compiled, tmp_path):
    """What a video's frames and planes are blurred by, one after the other."""
    x = make((5, 64), 16)
    for sigma in ((2.0, 0.0), (0.0, 2.0), (float("inf"), 0.0)):
        _, kernels = compiled(x, sigma, (5, 64))
        assert len(kernels) == 1
        check_resources(kernels[0], 255, tmp_path)


def test_blur_with_offsets_of_64_bits(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "row_extent", lambda x: 2**31)
    for kernel in compiled(make((64, 64), 320, BF16), 3.0, (64, 64))[1]:
        check_resources(kernel, 255, tmp_path)
