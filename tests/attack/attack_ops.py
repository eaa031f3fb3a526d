"""Raw calls of the ops with wrong arguments: an error, never memory that is not theirs.

With the ordinary build a crash shows; with the sanitized one (scripts/other_build.sh) every access
outside an array and every overflow of a size does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from attack import Attack, Broken

HERE = Path(__file__).parent
HELPERS = HERE.parent / "helpers"
SANITIZED = HERE.parent.parent / "build" / "sanitized" / "_C.so"
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}


def ordinary(seed: int, numbers: range) -> Counter[str]:
    """Call the installed build."""
    return _run(seed, numbers, [], {})


def sanitized(seed: int, numbers: range) -> Counter[str]:
    """Call the sanitized build, which `make attack` makes first."""
    if not SANITIZED.is_file():
        raise FileNotFoundError(f"{SANITIZED} is missing: scripts/other_build.sh sanitized")
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # the C++ runtime too: the sanitizer looks for its functions when it starts
    library = subprocess.run(
        ["g++", "-print-file-name=libstdc++.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return _run(seed, numbers, [str(SANITIZED)], {**OPTIONS, "LD_PRELOAD": f"{runtime} {library}"})


def _run(seed: int, numbers: range, more: list[str], environment: dict[str, str]) -> Counter[str]:
    command = [sys.executable, str(HERE / "raw_ops.py"), str(seed), str(numbers.start)]
    done = subprocess.run(
        [*command, str(len(numbers)), *more],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HELPERS), **environment},
    )
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        last = [line for line in lines if line.isdigit()][-1:]
        told = [line for line in lines if "ERROR" in line or "runtime error" in line][:2]
        why = told or lines[-3:]
        raise Broken(f"call {last} ended the process with {done.returncode}: {why}")
    return Counter(json.loads(done.stdout.splitlines()[-1]))


ATTACKS = (
    Attack(
        "ops",
        "A wrong call of torch.ops.fastguide raises; it does not crash",
        ordinary,
        count=3000,
        bounded=100,
    ),
    Attack(
        "ops-sanitized",
        "Nor does it touch memory that is not its own, nor overflow",
        sanitized,
        count=1000,
        bounded=0,
        seconds=900.0,
    ),
)
