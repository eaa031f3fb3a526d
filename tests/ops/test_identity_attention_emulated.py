"""The CUDA kernels of `identity_attention` against the fp64 reference, compiled for a CPU with
tests/ops/emulated in place of warp.cuh: thread for thread, fragment for fragment."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_identity_attention import BF16, FP16, FP32, OF_WEIGHTS, close, expected, make

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "csrc"

SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 8),
    (1, 2, 49, 7, 13),
    (1, 1, 65, 33, 32),
    (2, 2, 50, 77, 40),
    (1, 2, 97, 65, 96),
    (2, 1, 17, 40, 129),
    (1, 1, 66, 50, 160),
]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """`kernel(case)`: the output of the emulated kernel."""
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "cuda").mkdir()
    for header in ("inline.h", "online_softmax.h", "cuda/identity_attention.cuh"):
        shutil.copy(SOURCES / header, folder / header)
    for file in (HERE / "emulated").iterdir():
        shutil.copy(file, folder / "cuda" / file.name)
    library = folder / "kernel.so"
    source = folder / "cuda" / "identity_attention.cpp"
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-w"]
    command = ["c++", *flags, str(source), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    function = ctypes.CDLL(str(library)).identity_attention

    def run(q, k, v, context_k, context_v, context_mask=None):
        rows, heads, queries, dim = q.shape
        views = (q, k, v, context_k, context_v)
        strides = [stride for view in views for stride in view.stride()[:3]]
        strides += [0, 0] if context_mask is None else context_mask.stride()
        unit = 16 // q.element_size()
        aligned = dim % unit == 0 and all(
            view.data_ptr() % 16 == 0 and all(s % unit == 0 for s in view.stride()[:3])
            for view in views
        )
        buffer = torch.full((q.numel() + 64,), 77.0, dtype=q.dtype)
        function(
            *(ctypes.c_void_p(view.data_ptr()) for view in views),
            ctypes.c_void_p(None if context_mask is None else context_mask.data_ptr()),
            (ctypes.c_int64 * 17)(*strides),
            *map(ctypes.c_int64, (rows, heads, queries, context_k.shape[2], dim)),
            ctypes.c_float(dim**-0.5),
            ctypes.c_bool(aligned),
            ctypes.c_int64((FP32, BF16, FP16).index(q.dtype)),
            ctypes.c_void_p(buffer.data_ptr()),
        )
        assert (buffer[q.numel() :] == 77.0).all()  # nothing is written past the end
        return buffer[: q.numel()].view(rows, queries, heads, dim).transpose(1, 2), aligned

    return run


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["token", "head"])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference(size, dtype, kind, masked, kernel):
    case = make(size, dtype, kind, masked)
    got, aligned = kernel(**case)
    assert aligned == (kind == "token" and size[4] % 8 == 0)
    close(got, expected(case), dtype, OF_WEIGHTS[dtype])


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_where_all_of_the_context_is_masked_it_is_v(dtype, kernel):
    case = make((2, 1, 20, 40, 32), dtype)
    mask = torch.tensor([[False], [True]]).repeat(1, 40)
    out, _ = kernel(**case, context_mask=mask)
    assert torch.equal(out[0], case["v"][0])
    assert not torch.equal(out[1], case["v"][1])


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_huge_scores(dtype, kernel):
    case = make((1, 2, 20, 70, 64), dtype)
    own = {**case, "q": torch.full_like(case["q"], 50.0), "k": torch.full_like(case["k"], 50.0)}
    assert torch.equal(kernel(**own)[0], case["v"])
    case["q"] = torch.full_like(case["q"], 50.0)
    case["context_k"] = case["context_k"].clone().clamp(-1, 1)
    case["context_k"][:, :, 67] = 50.0
    want = case["context_v"][:, :, 67:68].expand(-1, -1, 20, -1)
    assert torch.equal(kernel(**case)[0], want)
