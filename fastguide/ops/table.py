"""The columns of the coefficient table, one row per evaluation: csrc/step_table.h in Python."""

from __future__ import annotations

import math
from enum import IntEnum

from torch import Tensor

MAX_SLOTS = 8


class Column(IntEnum):
    """`denoised = clamp(OF_X x + OF_PREDICTION guided, LOW, HIGH)`; next input `INPUT_SCALE x`;
    noise is scaled by `exp(SPREAD variance)` where the network predicts a variance.
    """

    OF_X = 0
    OF_PREDICTION = 1
    LOW = 2
    HIGH = 3
    INPUT_SCALE = 4
    SPREAD = 5
    MATRIX = 6


class Extra(IntEnum):
    """The image that is the last source of an update: the denoised image before it was clamped, or
    what the first branch beside the positive one makes of x, never clamped.
    """

    NONE = 0
    UNCLAMPED = 1
    NEGATIVE = 2


def width(slots: int) -> int:
    """Columns of a table for `slots` state slots: the matrix is [slots, slots + 3]."""
    return Column.MATRIX + slots * (slots + 3)


def slots_of(columns: int) -> int:
    """The number of slots whose table has `columns` columns."""
    slots = (math.isqrt(4 * (columns - Column.MATRIX) + 9) - 3) // 2
    if width(slots) != columns:
        raise ValueError(f"table has {columns} columns, which fits no number of slots")
    return slots


def matrix(row: Tensor) -> Tensor:
    """`[slots, slots + 3]`: output slot r is the sum over (slots, denoised, noise, extra). Where
    there is a row for each sample, `[width, B, 1, ...]`, so has every coefficient.
    """
    slots = slots_of(row.shape[0])
    return row[Column.MATRIX :].reshape(slots, slots + 3, *row.shape[1:])
