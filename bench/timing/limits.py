"""What a row must reach beside its twin on any machine: the goals of the design, and elsewhere the
worst figure of the machines seen, with a margin of 15 % or more. Rows that are not here have none.

Ratios to a twin move with a machine's balance of memory and arithmetic: `seen` says how much, over
two AMD EPYC, one with AVX-512, one with AVX2, of two threads each. They are no measure of a change
of the code, which `--base` is for.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Limit(NamedTuple):
    """Of the rows whose names match a pattern, in which * stands for anything."""

    rows: str
    at_most: float
    seen: str


LIMITS = (
    Limit("identity_attention*", 1 / 4, "0.07 - 0.11"),
    Limit("attention_colsum*", 0.75, "0.35 - 0.53"),
    Limit("blur*sigma 10, against a dense*", 1 / 3, "0.01 - 0.07"),
    Limit("blur*", 1.0, "0.08 - 0.64"),
    Limit("attention under SEG*", 1.0, "0.12"),
    Limit("DiT, CFG and PAG*", 0.87, "0.83"),
    Limit("DiT,*", 0.79, "0.73 - 0.75"),
    Limit("U-Net,*", 1.0, "0.90 - 0.92"),
    Limit("sample, single pass*", 1.03, "1.01 - 1.02"),
    Limit("single-pass superconditioning*", 0.54, "0.49"),
    Limit("CFG in an interval*", 0.78, "0.75"),
    Limit("*against its bare forwards", 1.08, "0.97 - 1.05"),
    Limit("step*with noise*", 0.55, "0.28 - 0.47"),
    Limit("step*without noise*", 0.75, "0.49 - 0.63"),
    Limit("diffusers*, CFG", 1.01, "0.91 - 0.93"),
    Limit("diffusers SD, CFG and*", 0.93, "0.80 - 0.83"),
    Limit("diffusers PixArt, CFG and*", 0.87, "0.78"),
    Limit("diffusers*half of the steps", 0.8, "0.74 - 0.76"),
    Limit("REG (vjp) against CFG*", 1.75, "1.52 - 1.60"),
    Limit("REG (*every 4) against CFG*", 1.3, "1.10 - 1.16"),
    Limit("*against CFG, batch 64", 1.04, "0.98 - 1.02"),
    Limit("self_attention*", 0.9, "0.47 - 0.67"),
    Limit("group_norm*", 0.95, "0.05 - 0.88"),
    Limit("gram*against plain PyTorch", 0.4, "0.09 - 0.18"),
)


def limit_of(row: str, limits: tuple[Limit, ...] = LIMITS) -> float | None:
    """Of the first pattern that matches; None where none does."""
    for one in limits:
        if re.fullmatch(re.escape(one.rows).replace(r"\*", ".*"), row):
            return one.at_most
    return None
