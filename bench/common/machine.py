"""Where, when and how something was measured: what every file of results begins with. It needs no
fastguide, which may not be built yet.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
GIT = ("--always", "--dirty", "--abbrev=40", "--exclude=*")
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}  # flags of a processor, the widest first


def where_and_when(gpu: torch.device | None = None, commit: str | None = None) -> dict[str, Any]:
    """Date (UTC), commit, command, device and versions.

    Args:
        gpu: which one; the current one by default.
        commit: where there is no git to ask.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or output_of("git", "describe", *GIT),
        "command": command(),
        "device": device_of(gpu),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "nvcc": ((output_of("nvcc", "--version") or "").splitlines() or [None])[-1],
            "triton": version_of("triton"),
            "fastguide": fastguide_version(),
        },
    }


def command() -> str:
    """What was run, from the repository's root."""
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(ROOT) and script.suffix == ".py":
        start = ["python", str(script.relative_to(ROOT))]
    else:
        start = [script.name]
    return shlex.join([*start, *sys.argv[1:]])


def device_of(gpu: torch.device | None) -> dict[str, Any]:
    """The processor, and the GPU where there is one."""
    found: dict[str, Any] = {
        "cpu": processor(),
        "vectors": vectors(),
        "threads": torch.get_num_threads(),
        "gpu": None,
    }
    if torch.cuda.is_available() and (gpu is None or gpu.type == "cuda"):
        properties = torch.cuda.get_device_properties(gpu)
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {
            "gpu": torch.cuda.get_device_name(gpu),
            "capability": list(torch.cuda.get_device_capability(gpu)),
            "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "driver": driver,
        }
    return found


def short_name() -> str:
    """The processor as a key: those of one model name differ in their vectors."""
    parts = [processor(), vectors() or platform.machine()]
    return ", ".join([*parts, f"{torch.get_num_threads()} threads"])


def processor() -> str:
    """The processor's model name."""
    return next(iter(of_cpuinfo("model name")), platform.processor())


def vectors() -> str | None:
    """The widest vectors of the processor that the kernels know."""
    flags = " ".join(of_cpuinfo("flags")[:1]).split()
    return next((name for flag, name in VECTORS.items() if flag in flags), None)


def of_cpuinfo(name: str) -> list[str]:
    """What Linux says of each core; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def output_of(*words: str) -> str | None:
    """What a command prints; None where there is none or it fails."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def version_of(package: str) -> str | None:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def fastguide_version() -> str:
    """Of this source tree."""
    text = (ROOT / "fastguide/__init__.py").read_text()
    found = re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError("fastguide/__init__.py should have a line with __version__")
    return found.group(1)
