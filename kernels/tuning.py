"""Launch settings, tuned offline and stored in tuned.json: kernel -> device -> case -> settings."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

Tuned = dict[str, dict[str, dict[str, dict[str, int]]]]  # kernel -> device -> case -> settings
TUNED = Path(__file__).with_name("tuned.json")

# Safe on every GPU, without spills (tests/test_*_compile.py).
DEFAULTS = {
    # no spills whatever the strides and the grid, and two blocks at once where they are aligned
    # (tests/ops/test_blur_compile.py); the weights of a tile serve BYTES of neighbours. A loop in
    # more stages takes registers for a second block.
    "blur": {"BLOCK": 64, "STEP": 16, "BYTES": 256, "num_warps": 8, "num_stages": 1},
    # 4 elements a thread, at most 80 registers at any number of slots and branches, aligned or not.
    # 8 a thread take 10-25 % fewer instructions an element, but up to 240 registers.
    "step": {"BLOCK": 512, "num_warps": 4},
    # one warp a program, so that no thread waits for another; chains of 32 additions in fp32, and
    # TILE of their sums are read at once
    "gram": {"BLOCK": 128, "STEPS": 8, "UNROLL": 2, "TILE": 4096, "num_warps": 1},
    # more than 4 branches: as many registers as one step of 4 elements takes
    "gram_many": {"BLOCK": 128, "STEPS": 8, "UNROLL": 1, "TILE": 4096, "num_warps": 1},
    # 16 elements a thread, WIDTH channels of a token one after the other; at most 80 registers
    "group_norm": {"TILE": 2048, "WIDTH": 64, "num_warps": 4},
    "group_norm_backward": {"TILE": 2048, "WIDTH": 64, "num_warps": 4},
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


_trials: dict[str, tuple[Mapping[str, int], set[str]]] = {}


def read_tuned(path: Path) -> Tuned:
    """What `bench/gpu/tune.py` wrote; nothing where there is no file.

    Raises:
        ValueError: the file is damaged, or its kernels and settings are not those of DEFAULTS.
    """
    if not path.exists():
        return {}
    try:
        tuned = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); `python bench/gpu/tune.py` writes it anew"
        ) from error
    check_tuned(str(path), tuned)
    return tuned


def check_tuned(name: str, tuned: Any) -> None:
    """Raise ValueError unless `tuned` is settings by kernel, device and case."""
    for kernel, devices in _items(name, tuned):
        if kernel not in DEFAULTS:
            raise ValueError(
                f"{name} has the kernel {kernel!r}, but should have some of {', '.join(DEFAULTS)}"
            )
        wanted = list(DEFAULTS[kernel])
        for device, cases in _items(f"{name}: {kernel}", devices):
            for case, settings in _items(f"{name}: {kernel}, {device}", cases):
                where = f"{name}: {kernel}, {device}, {case}"
                found = dict(_items(where, settings))
                if sorted(found) != sorted(wanted):
                    raise ValueError(f"{where} has {sorted(found)}, but should have {wanted}")
                for key, value in found.items():
                    if type(value) is not int or value < 1:
                        raise ValueError(
                            f"{where}: {key} is {value!r}, but should be a whole number"
                        )


def _items(where: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}, but it should be an object")
    return list(value.items())


@cache
def _tuned() -> Tuned:
    return read_tuned(TUNED)


@cache
def device_name(device: torch.device) -> str:
    """What tuned.json calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def trial(kernel: str, settings: Mapping[str, int]) -> Iterator[set[str]]:
    """Until it is closed `settings` are those of every case of `kernel`. Gives the cases that were
    looked up, as they are written in tuned.json.
    """
    cases: set[str] = set()
    _trials[kernel] = (settings, cases)
    try:
        yield cases
    finally:
        del _trials[kernel]


def lookup(kernel: str, device: torch.device, **case: int | bool) -> Mapping[str, int]:
    """The settings of `kernel` for `case` on `device`, or the safe default."""
    key = ",".join(f"{name}={int(value)}" for name, value in sorted(case.items()))
    if kernel in _trials:
        settings, cases = _trials[kernel]
        cases.add(key)
        return settings
    return _tuned().get(kernel, {}).get(device_name(device), {}).get(key, DEFAULTS[kernel])
