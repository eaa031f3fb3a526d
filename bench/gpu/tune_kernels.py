"""What is tuned of the Triton kernels: candidates, and the cases by which they look settings up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from op_cases import (
    BF16,
    FP32,
    OpCase,
    blur_case,
    colsum_case,
    gram_case,
    group_norm_backward_case,
    group_norm_case,
    step_case,
)

Settings = Mapping[str, int]


@dataclass(frozen=True)
class Kernel:
    """What is tuned of one kernel: adding a kernel is adding one of these to `KERNELS`.

    Args:
        candidates: settings besides the default; those that are not named stay the default's.
        cases: for each case that `lookup` knows, inputs at one or more sizes. Which case they are
            is seen from what they look up.
        tiny: inputs to try the tool with.
    """

    candidates: Sequence[Settings]
    cases: Sequence[Sequence[Callable[[torch.device], OpCase]]]
    tiny: Callable[[torch.device], OpCase]


def of(make: Callable[..., OpCase], *arguments: Any) -> Callable[[torch.device], OpCase]:
    """`make` with everything but the device."""
    return lambda device: make(device, *arguments)


SMALL, LARGE = (8, 4, 64, 64), (256, 4, 128, 128)  # a latent batch, and 256 MiB for two branches

# feature maps of the U-Nets of images of 64 and of latents of 128 pixels
MAPS = ((8, 4096, 192), (2, 16384, 320), (16, 256, 640))
NORMS = (
    {"TILE": 1024},
    {"TILE": 4096},
    {"TILE": 4096, "num_warps": 8},
    {"WIDTH": 32},
    {"WIDTH": 128},
)

KERNELS: dict[str, Kernel] = {
    "step": Kernel(
        [
            {"BLOCK": 256, "num_warps": 2},
            {"BLOCK": 1024, "num_warps": 8},
            {"BLOCK": 512, "num_warps": 2},
            {"BLOCK": 1024, "num_warps": 4},
        ],
        [
            [of(step_case, shape, branches, BF16, drawn) for shape in (LARGE, SMALL)]
            for branches in (2, 1, 3, 4)
            for drawn in (False, True)
        ],
        of(step_case, (2, 4, 8, 8)),
    ),
    "gram": Kernel(
        [
            {"STEPS": 4},
            {"STEPS": 16},
            {"UNROLL": 4},
            {"STEPS": 16, "UNROLL": 4},
            {"BLOCK": 256, "num_warps": 2},
        ],
        [[of(gram_case, shape, branches) for shape in (LARGE, SMALL)] for branches in (2, 3, 4)],
        of(gram_case, (2, 4, 8, 8)),
    ),
    "gram_many": Kernel(
        [{"STEPS": 4}, {"STEPS": 16}, {"UNROLL": 2}],
        [[of(gram_case, shape, branches) for shape in (LARGE, SMALL)] for branches in (5, 6)],
        of(gram_case, (2, 4, 8, 8), 6),
    ),
    "blur": Kernel(
        [
            {"BYTES": 128, "num_warps": 4},
            {"BYTES": 512},
            {"num_warps": 4},
            {"STEP": 32},
            {"BLOCK": 32, "num_warps": 4},
            {"num_stages": 2},
        ],
        [
            *([of(blur_case, 4, (n, n), 1280)] for n in (16, 32, 64)),  # tokens: SEG
            *([of(blur_case, 16, (n, n), 4, FP32, True)] for n in (64, 128)),  # images: SAG
        ],
        of(blur_case, 2, (8, 8), 32),
    ),
    "group_norm": Kernel(
        NORMS,
        [[of(group_norm_case, size) for size in MAPS]],
        of(group_norm_case, (2, 40, 32), FP32, 8),
    ),
    "group_norm_backward": Kernel(
        NORMS,
        [[of(group_norm_backward_case, size) for size in MAPS]],
        of(group_norm_backward_case, (2, 40, 32), FP32, 8),
    ),
    "attention_colsum": Kernel(
        [
            {"num_warps": 4},
            {"KEYS": 128},
            {"QUERIES": 128},
            {"QUERIES": 128, "KEYS": 128},
            {"num_stages": 3},
            {"QUERIES": 128, "num_stages": 3},
        ],
        [
            [of(colsum_case, (2, heads, 4096, dim)), of(colsum_case, (2, heads, 1024, dim))]
            for heads, dim in ((10, 64), (8, 40), (16, 72), (8, 128))
        ],
        of(colsum_case, (1, 2, 24, 32)),
    ),
    "attention_colsum_fp32": Kernel(
        [{"QUERIES": 32}, {"KEYS": 32}, {"DEPTH": 64}, {"num_stages": 1}],
        [[of(colsum_case, (2, 10, 1024, 64), FP32)]],
        of(colsum_case, (1, 2, 24, 32), FP32),
    ),
}
