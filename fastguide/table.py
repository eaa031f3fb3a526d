"""The columns of the coefficient table, one row per evaluation: csrc/step_table.h in Python."""

from __future__ import annotations

import math
from enum import IntEnum

from torch import Tensor

MAX_SLOTS = 8


class Column(IntEnum):
    """`denoised = clamp(OF_X x + OF_PREDICTION guided, LOW, HIGH)`; next input `INPUT_SCALE x`."""

    OF_X = 0
    OF_PREDICTION = 1
    LOW = 2
    HIGH = 3
    INPUT_SCALE = 4
    MATRIX = 5


def width(slots: int) -> int:
    """Columns of a table for `slots` state slots: the matrix is [slots, slots + 2]."""
    return Column.MATRIX + slots * (slots + 2)


def slots_of(columns: int) -> int:
    """The number of slots whose table has `columns` columns."""
    slots = math.isqrt(columns - Column.MATRIX + 1) - 1
    if width(slots) != columns:
        raise ValueError(f"table has {columns} columns, which fits no number of slots")
    return slots


def matrix(row: Tensor) -> Tensor:
    """`[slots, slots + 2]`: output slot r is the sum over (slots, denoised, noise)."""
    slots = slots_of(row.shape[-1])
    return row[Column.MATRIX :].reshape(slots, slots + 2)
