"""Every Triton kernel compiled for sm_80 and sm_90, as its launcher would, on a machine without a GPU.

`pytest -rP tests/test_triton_compile.py` prints the registers of each case.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from fastguide.kernels.step import step, step_kernel
from test_step import make
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastguide import ops

ARCHITECTURES = (80, 90)
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
THREADS = 128  # num_warps 4; 4 elements each

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


class NoGPU:
    """What Triton asks of its driver in order to compile."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def compiled(request, monkeypatch):
    """`compiled(case, shape)`: the kernel that the launcher of `step` would run."""
    kernels = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **settings):
        kernels.append(run(self, *arguments, grid=grid, warmup=True, **settings))

    monkeypatch.setattr(driver, "_active", NoGPU(request.param))
    monkeypatch.setattr(JITFunction, "run", compile_only)

    def compile_step(case, shape=(2, 4, 16, 16), reads=None, writes=None):
        slots, branches, dtype, noise, layout, copies = case
        inputs = make(slots, branches, shape, dtype, layout)
        everything = (1 << slots) - 1
        step(
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
            everything if reads is None else reads,
            everything if writes is None else writes,
        )
        return kernels.pop()

    return compile_step


def resources(kernel, folder) -> dict[str, int]:
    """Registers, stack, ... of a compiled kernel, as cuobjdump tells them."""
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    tool = bundled if bundled.exists() else shutil.which("cuobjdump")
    assert tool, f"no cuobjdump at {bundled}, nor on PATH"
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    command = [tool, "--dump-resource-usage", cubin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", text)}


def accesses(kernel) -> dict[str, int]:
    """How often each kind of access to global memory occurs in the PTX: {"ld v4.b32": 3, ...}."""
    found = re.findall(r"\b(ld|st)\.global\S*?\.((?:v\d\.)?[bfus]\d+)", kernel.asm["ptx"])
    kinds = [f"{direction} {kind}" for direction, kind in found]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (2, 3, 5, 7)], ids=["aligned", "odd"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_fits_in_registers(case, shape, compiled, tmp_path):
    kernel = compiled(case, shape)
    used = resources(kernel, tmp_path)
    print(f"{used['REG']} registers")
    assert (used["STACK"], used["LOCAL"]) == (0, 0)  # spills lie on the stack
    # 65,536 registers hold 24 warps of 80, and 32 of 64 for the sizes that most samplers have
    assert used["REG"] <= (64 if case[0] <= 3 and case[1] <= 2 else 80)


@pytest.mark.parametrize("case", [case for case in CASES if case[4] in ("plain", "channels")])
def test_aligned_step_reads_and_writes_four_elements_at_once(case, compiled):
    slots, branches, dtype, noise, _, copies = case
    kernel = compiled(case)
    wide = slots + (noise == "given")
    found = accesses(kernel)
    four = "v4.b32" if dtype == FP32 else "v2.b32"
    loads = {"ld v4.b32": wide}
    stores = {"st v4.b32": slots}
    loads[f"ld {four}"] = loads.get(f"ld {four}", 0) + branches
    stores[f"st {four}"] = stores.get(f"st {four}", 0) + copies
    assert {k: n for k, n in found.items() if "v" in k} == {
        k: n for k, n in {**loads, **stores}.items() if n
    }
    # all else is one number for all elements: evaluation, seed, weights, the table's row
    scalars = sum(n for k, n in found.items() if k.startswith("ld") and "v" not in k)
    row = slots * (slots + 1 + (noise != "none")) + (4 if branches else 0) + (copies > 0)
    assert scalars == 1 + (noise == "drawn") + branches + row
    assert kernel.metadata.shared == 0  # nothing changes hands, so no barrier either


def test_step_costs_only_the_slots_in_reads_and_writes(compiled):
    found = accesses(compiled((4, 2, BF16, "none", "plain", 0), reads=0b0011, writes=0b0101))
    assert found["ld v4.b32"] == 2
    assert found["st v4.b32"] == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_keeps_nan_and_rounds_to_nearest(case, compiled):
    """What the interpreter does not tell apart."""
    _, branches, dtype, _, _, copies = case
    ptx = compiled(case).asm["ptx"]
    assert ("max.NaN.f32" in ptx) == ("min.NaN.f32" in ptx) == (branches > 0)
    if dtype != FP32 and copies:
        assert re.search(r"cvt\.rn\.(bf16|f16)", ptx)
        assert not re.search(r"cvt\.r[zmp]i?\.(bf16|f16)", ptx)


def test_step_of_more_than_two_to_the_31_elements(compiled, tmp_path):
    """Offsets of 64 bits, chosen by the launcher."""
    big = torch.zeros(1, 1, 1, 1).expand(1, 1, 4, 2**30)
    small = make(1, 1, (1, 4, 1))
    step(
        big,
        [big[0]],
        small["weights"],
        small["table"],
        small["evaluation"],
        None,
        None,
        None,
        small["first_bad"],
        1,
        1,
    )


def test_every_kernel_is_compiled_here():
    folder = Path(tuning.__file__).parent
    kernels = re.findall(r"def (\w+_kernel)\(", "".join(p.read_text() for p in folder.glob("*.py")))
    assert kernels == [step_kernel.__name__]
