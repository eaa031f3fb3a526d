"""Triton kernels compiled for GPUs that are not there, and what `cuobjdump` says of them."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

ARCHITECTURES = (80, 90)


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


@contextmanager
def compiler(launcher: Callable, architecture: int):
    """`compiled(*arguments, **settings)`: the kernels, in order, that `launcher` would run."""
    kernels = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **settings):
        kernels.append(run(self, *arguments, grid=grid, warmup=True, **settings))

    def compiled(*arguments, **settings):
        kernels.clear()
        launcher(*arguments, **settings)
        return list(kernels)

    with (
        patch.object(driver, "_active", NoGPU(architecture)),
        patch.object(JITFunction, "run", compile_only),
    ):
        yield compiled


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


def accesses(kernel) -> Counter[str]:
    """How often each kind of access to global memory occurs in the PTX: {"ld v4.b32": 3, ...}."""
    found = re.findall(r"\b(ld|st)\.global\S*?\.((?:v\d\.)?[bfus]\d+)", kernel.asm["ptx"])
    return Counter(f"{direction} {kind}" for direction, kind in found)


def check_resources(kernel, limit, folder):
    """At most `limit` registers a thread, and no spills."""
    used = resources(kernel, folder)
    print(f"{used['REG']} registers")
    assert (used["STACK"], used["LOCAL"]) == (0, 0)  # where spills lie
    assert used["REG"] <= limit
