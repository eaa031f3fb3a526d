"""Every op once at small odd sizes against its reference: what the sanitizer watches.

python bench/gpu/every_op.py [--device cpu]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from op_cases import (
    BF16,
    FP32,
    OpCase,
    blur_case,
    check,
    colsum_case,
    difference,
    gram_case,
    group_norm_backward_case,
    group_norm_case,
    identity_case,
    step_case,
)

import fastguide as fg


def cases(device: torch.device) -> dict[str, OpCase]:
    """Sizes that no block divides, and rows that no 16 bytes divide."""
    odd = (3, 3, 7, 11)
    found = {}
    for name, dtype in (("fp32", FP32), ("bf16", BF16)):
        found |= {
            f"step, {name}": step_case(device, odd, 2, dtype),
            f"step with noise, {name}": step_case(device, odd, 3, dtype, drawn=True),
            f"gram, {name}": gram_case(device, odd, 2, dtype),
            f"gram of many, {name}": gram_case(device, (2, 3, 37, 41), 6, dtype),
            f"blur of tokens, {name}": blur_case(device, 3, (7, 11), 37, dtype),
            f"blur of pixels, {name}": blur_case(device, 3, (7, 11), 5, dtype, pixels=True),
            f"identity_attention, {name}": identity_case(device, (2, 3, 49, 7, 24), dtype),
            f"attention_colsum, {name}": colsum_case(device, (2, 3, 49, 24), dtype),
            f"group_norm, {name}": group_norm_case(device, (3, 77, 42), dtype, 6),
            f"group_norm_backward, {name}": group_norm_backward_case(device, (3, 77, 42), dtype, 6),
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    """The number of ops that are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args(arguments).device)
    torch.manual_seed(0)
    wrong = 0
    for name, case in cases(device).items():
        try:
            print(f"{name}: {check(case):.1e}")
        except AssertionError as error:
            wrong += 1
            print(f"{name}: {error}")
    seeds = [0, 2**63 - 1, 5]
    found = difference(fg.noise(seeds, (3, 5, 7), 2, device), fg.noise(seeds, (3, 5, 7), 2))
    wrong += not found <= 1e-5
    print(f"noise: {found:.1e}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
