"""Launch settings, tuned offline and stored in tuned.json: kernel -> device -> case -> settings."""

import json
from functools import cache
from pathlib import Path

import torch

# safe on every GPU: no spills at any number of branches (tests/test_triton_compile.py)
DEFAULTS = {
    "step": {"BLOCK": 1024, "num_warps": 4},
}


@cache
def _tuned() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    path = Path(__file__).with_name("tuned.json")
    return json.loads(path.read_text()) if path.exists() else {}


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def lookup(kernel: str, device: torch.device, **case: int | bool) -> dict[str, int]:
    """The settings of `kernel` for `case` on `device`, or the safe default."""
    key = ",".join(f"{name}={int(value)}" for name, value in sorted(case.items()))
    return _tuned().get(kernel, {}).get(_device_name(device), {}).get(key, DEFAULTS[kernel])
