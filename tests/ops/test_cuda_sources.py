"""The CUDA kernels compile without spills for each GPU that is built for; needs nvcc, no GPU."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils import cpp_extension

FOLDER = Path(__file__).parents[2] / "csrc" / "cuda"
SOURCES = sorted(FOLDER.glob("*.cu"))


@pytest.fixture(scope="module")
def nvcc() -> str:
    """The compiler; a machine that only runs on the CPU may be without."""
    found = shutil.which("nvcc", path=f"{cpp_extension.CUDA_HOME or ''}/bin") or shutil.which(
        "nvcc"
    )
    return found or pytest.skip("nvcc is not on PATH, and there is none in CUDA_HOME")


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_compiles_without_spills(source, nvcc, tmp_path):
    headers = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    command = [
        nvcc,
        "-c",
        str(source),
        "-o",
        str(tmp_path / "kernel.o"),
        "-std=c++20",
        "-O3",
        "-DC10_USING_CUSTOM_GENERATED_MACROS",  # a CPU build of torch has no generated CUDA macros
        *[f"-isystem={header}" for header in headers],
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-Xptxas=-v",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    print(run.stderr)
    per_architecture = source.read_text().count("__global__")
    for architecture in ("sm_80", "sm_90"):
        entries = re.findall(rf"Compiling entry function '\w+' for '{architecture}'", run.stderr)
        assert len(entries) >= per_architecture > 0
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", run.stderr)
    assert used == [("0", "0")] * run.stderr.count("Compiling entry function")


def test_there_are_sources():
    assert SOURCES
