"""Launch settings, tuned offline and stored in tuned.json: kernel -> device -> case -> settings."""

import json
from functools import cache
from pathlib import Path

import torch

# Safe on every GPU, without spills (tests/test_*_compile.py).
DEFAULTS = {
    # no spills whatever the strides and the grid, and two blocks at once where they are aligned
    # (tests/test_blur_compile.py); the weights of a tile serve BYTES of neighbours. A loop in more
    # stages takes registers for a second block.
    "blur": {"BLOCK": 64, "STEP": 16, "BYTES": 256, "num_warps": 8, "num_stages": 1},
    # 4 elements a thread, at most 80 registers at any number of slots and branches, aligned or not.
    # 8 a thread take 10-25 % fewer instructions an element, but up to 240 registers.
    "step": {"BLOCK": 512, "num_warps": 4},
    # one warp a program, so that no thread waits for another; chains of 32 additions in fp32, and
    # TILE of their sums are read at once
    "gram": {"BLOCK": 128, "STEPS": 8, "UNROLL": 2, "TILE": 4096, "num_warps": 1},
    # more than 4 branches: as many registers as one step of 4 elements takes
    "gram_many": {"BLOCK": 128, "STEPS": 8, "UNROLL": 1, "TILE": 4096, "num_warps": 1},
    # a token whole: at most 74 registers where tokens are aligned, 97 KiB of shared memory
    "attention_colsum": {
        "QUERIES": 64,
        "KEYS": 64,
        "DEPTH": 256,
        "num_warps": 8,
        "num_stages": 2,
    },
    # a token in parts; factors and their rounding errors take twice the registers, so twice the
    # threads share a tile
    "attention_colsum_fp32": {
        "QUERIES": 64,
        "KEYS": 64,
        "DEPTH": 32,
        "num_warps": 8,
        "num_stages": 2,
    },
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
