"""The ops on a GPU beside what its memory and its matrix units can do, measured in the same run.

    python bench/gpu/ops_gpu.py [--out FILE] [--seconds 60] [--device cpu --tiny]

Bytes are those of the inputs and outputs, each once; the ceiling is a device-to-device copy that
reads and writes as many bytes in all. Operations are those of the matrix products; the ceiling is
torch's scaled_dot_product_attention. Inputs are taken in turns from several copies, so that the
cache does not serve them, except where a row says "in cache".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from op_cases import (
    BF16,
    FP32,
    OpCase,
    blur_case,
    check,
    colsum_case,
    gram_case,
    group_norm_backward_case,
    group_norm_case,
    heads_of,
    identity_case,
    step_case,
)
from record import Deadline, Job, Report, options, target
from timing import cache_bytes, kernel_times, sets_for, summary

MIB = 2**20
SHARE = 0.9  # of the copy's bandwidth, at LARGE bytes and more: the target of step
LARGE = 64 * MIB
ROUNDS = 9


class Ceilings:
    """What the device can do, each measured once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copy = cache(self._copy)
        self.attention = cache(self._attention)

    def _copy(self, moved: int) -> float:
        """Bytes a second, read and written, of copies that move `moved` bytes each."""
        half = max(moved // 2, 1)
        pairs = [
            torch.randint(256, (2, half), dtype=torch.uint8, device=self.device)
            for _ in range(sets_for(moved, self.device))
        ]
        calls = [partial(pair[1].copy_, pair[0]) for pair in pairs]
        return 2 * half / summary(kernel_times(calls, self.device, ROUNDS)).seconds

    def _attention(self, heads: int, tokens: int, dim: int, rows: int) -> float:
        """Operations a second of torch's own attention in bf16."""
        q, k, v = heads_of(self.device, rows, heads, tokens, dim, 3, BF16)
        call = partial(F.scaled_dot_product_attention, q, k, v)
        flops = 4.0 * rows * heads * tokens * tokens * dim
        return flops / summary(kernel_times([call], self.device, ROUNDS)).seconds


def timed(make: Callable[[], OpCase], moved: int, device: torch.device) -> dict[str, Any]:
    """Seconds of a call, in turns over as many inputs as pass the cache by."""
    sets = [make() for _ in range(sets_for(moved, device))]
    found = summary(kernel_times([case.call for case in sets], device, ROUNDS))
    in_cache = len(sets) * moved < 2 * cache_bytes(device)
    return {"seconds": found.seconds, "spread": found.spread, "in_cache": in_cache}


def memory_row(
    make: Callable[[], OpCase], small: Callable[[], OpCase], ceilings: Ceilings, aimed: bool
) -> dict[str, Any]:
    """An op that only moves bytes; `small` is the same at a size that is quick to check."""
    error = check(small())
    case = make()
    moved = case.moved
    del case
    row = {**timed(make, moved, ceilings.device), "bytes": moved, "error": error}
    row["bytes_per_second"] = moved / row["seconds"]
    row["copy_of_as_many"] = ceilings.copy(moved)
    row["share"] = row["bytes_per_second"] / row["copy_of_as_many"]
    row["line"] = (
        f"{moved / MIB:.2f} MiB, {1e6 * row['seconds']:.1f} us, "
        f"{row['bytes_per_second'] / 1e9:.0f} GB/s, {row['share']:.0%} of a copy of as many bytes"
        f"{', in cache' if row['in_cache'] else ''}"
    )
    if aimed and moved >= LARGE:
        row["targets"] = [target("share of the copy's bandwidth", row["share"], SHARE, True)]
    return row


def matrix_row(
    make: Callable[[], OpCase],
    small: Callable[[], OpCase],
    ceilings: Ceilings,
    like: tuple[int, ...],
) -> dict[str, Any]:
    """An op of matrix products, beside attention of `like` (heads, tokens, dim, rows)."""
    error = check(small())
    case = make()
    moved, flops = case.moved, case.flops
    del case
    row = {**timed(make, moved, ceilings.device), "flops": flops, "bytes": moved, "error": error}
    row["flops_per_second"] = flops / row["seconds"]
    row["attention_flops_per_second"] = ceilings.attention(*like)
    row["share"] = row["flops_per_second"] / row["attention_flops_per_second"]
    row["share_of_copy"] = moved / row["seconds"] / ceilings.copy(moved)
    row["line"] = (
        f"{1e6 * row['seconds']:.1f} us, {row['flops_per_second'] / 1e12:.1f} TFLOP/s, "
        f"{row['share']:.0%} of attention's rate, {row['share_of_copy']:.0%} of a copy's bandwidth"
    )
    return row


def jobs(ceilings: Ceilings, tiny: bool) -> list[Job]:
    """All rows, the most telling first."""
    device = ceilings.device
    found: list[Job] = []

    def memory(
        name: str, make: Any, sizes: dict[str, tuple[Any, ...]], aimed: bool = False
    ) -> None:
        small = partial(make, device, *next(iter(sizes.values())))
        for size, arguments in list(sizes.items())[: 1 if tiny else None]:
            run = partial(memory_row, partial(make, device, *arguments), small, ceilings, aimed)
            found.append(Job(f"{name} {size}", run, 2.0))

    # (batch, channels, height, width): 16 bytes an element for two bf16 branches and two next rows
    latents = {
        "[2, 4, 32, 32]": ((2, 4, 32, 32),),
        "[8, 4, 64, 64]": ((8, 4, 64, 64),),
        "[64, 4, 128, 128]": ((64, 4, 128, 128),),
        "[256, 4, 128, 128]": ((256, 4, 128, 128),),
        "[1024, 4, 128, 128]": ((1024, 4, 128, 128),),
    }
    drawn = {k: (*v, 2, BF16, True) for k, v in latents.items()}
    single = {k: (*v, 2, FP32) for k, v in latents.items()}
    memory("step, CFG, bf16", step_case, latents, True)
    memory("step, CFG, bf16, with noise", step_case, drawn, True)
    memory("step, CFG, fp32", step_case, single, True)
    memory("gram, 2 branches, bf16", gram_case, latents)
    memory("gram, 6 branches, bf16", gram_case, {k: (*v, 6) for k, v in latents.items()})
    tokens = {
        "[1, 16 x 16, 384]": (1, (16, 16), 384),
        "[8, 32 x 32, 1280]": (8, (32, 32), 1280),
        "[16, 64 x 64, 640]": (16, (64, 64), 640),
    }
    images = {
        "[2, 4, 32 x 32]": (2, (32, 32), 4, FP32, True),
        "[64, 4, 128 x 128]": (64, (128, 128), 4, FP32, True),
        "[256, 4, 128 x 128]": (256, (128, 128), 4, FP32, True),
    }
    memory("blur of tokens, bf16, sigma 3", blur_case, tokens)
    memory("blur of images, fp32, sigma 3", blur_case, images)
    maps_of = {
        "[2, 16 x 16, 64]": ((2, 256, 64),),
        "[8, 64 x 64, 192]": ((8, 4096, 192),),
        "[16, 128 x 128, 320]": ((16, 16384, 320),),
    }
    memory("group_norm and SiLU, bf16", group_norm_case, maps_of)
    memory("gradient of group_norm and SiLU, bf16", group_norm_backward_case, maps_of)

    small_attention = (1, 2, 48, 16, 32)
    joint = [(2, 24, 4096, 333, 64), (2, 24, 4096, 512, 128)]  # SD3 and FLUX at 1024
    maps = [(8, 10, 1024, 64), (2, 10, 4096, 64), (2, 8, 4096, 40)]  # SDXL and SD at 1024 and 512
    if tiny:
        joint, maps = [small_attention], [(1, 2, 48, 32)]
    for size in joint:
        rows, heads, queries, _, dim = size
        run = partial(
            matrix_row,
            partial(identity_case, device, size),
            partial(identity_case, device, small_attention),
            ceilings,
            (heads, queries, dim, rows),
        )
        found.append(Job(f"identity_attention {list(size)}, bf16", run, 2.0))
    for rows, heads, queries, dim in maps:
        run = partial(
            matrix_row,
            partial(colsum_case, device, (rows, heads, queries, dim)),
            partial(colsum_case, device, (1, 2, 48, 32)),
            ceilings,
            (heads, queries, dim, rows),
        )
        found.append(Job(f"attention_colsum {[rows, heads, queries, dim]}, bf16", run, 2.0))
    return found


def main(arguments: list[str] | None = None) -> int:
    """1 where a row failed."""
    parser = options(__doc__, "the smallest sizes, to try the tool")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    deadline = Deadline(given.seconds)
    torch.manual_seed(0)
    ceilings = Ceilings(device)
    large = MIB if given.tiny else 2048 * MIB
    like = (2, 48, 32, 1) if given.tiny else (16, 4096, 128, 2)
    report = Report(
        given.out,
        {
            "tiny": given.tiny,
            "copy_bytes_per_second": ceilings.copy(large),
            "copy_bytes": large,
            "attention_flops_per_second": ceilings.attention(*like),
            "attention_of": dict(zip(("heads", "tokens", "dim", "rows"), like, strict=True)),
        },
    )
    content = report.content
    print(
        f"copy of {large // MIB} MiB: {content['copy_bytes_per_second'] / 1e9:.0f} GB/s; attention "
        f"{list(like)}: {content['attention_flops_per_second'] / 1e12:.1f} TFLOP/s"
    )
    return 0 if report.run(jobs(ceilings, given.tiny), deadline) else 1


if __name__ == "__main__":
    sys.exit(main())
