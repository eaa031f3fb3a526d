"""What a condition may hold beside batch-first tensors: a list with a tensor for each row, and what
is the same for all rows. Both are leaves of a condition's tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Ragged:
    """A tensor for each row, of any lengths."""

    rows: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Fixed:
    """Arguments by name that are the same for all rows; rows of which they differ do not run as one
    batch.
    """

    values: Mapping[str, Any]

    def same(self, other: Fixed) -> bool:
        """Whether the other holds the same; tensors by what they hold, which waits for the device
        where they are not the same objects.
        """
        return _same(dict(self.values), dict(other.values))


def form(leaf: Any) -> object:
    """What two leaves have to have in common to lie along one batch."""
    return leaf.shape[1:] if isinstance(leaf, Tensor) else type(leaf)


def alike(leaves: Sequence[Any]) -> bool:
    """Whether leaves of several conditions can lie along one batch."""
    first = leaves[0]
    if isinstance(first, Fixed):
        return all(isinstance(one, Fixed) and first.same(one) for one in leaves[1:])
    return len({form(leaf) for leaf in leaves}) == 1


def joined(*parts: Any) -> Any:
    """The rows of several conditions' leaves, one after the other.

    Raises:
        ValueError: they cannot lie along one batch.
    """
    if not alike(parts):
        told = ", ".join(
            str(tuple(one.shape)) if isinstance(one, Tensor) else type(one).__name__
            for one in parts
        )
        raise ValueError(
            f"conditions have the shapes {told}, but rows that attend to each other, as NAG's do, "
            "need equal ones"
        )
    if isinstance(parts[0], Ragged):
        return Ragged(tuple(row for one in parts for row in one.rows))
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]


def rows_of(leaf: Any) -> int | None:
    """How many rows it holds; None where it is the same for all."""
    if isinstance(leaf, Ragged):
        return len(leaf.rows)
    return leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None


def narrowed(leaf: Any, start: int, length: int) -> Any:
    """Some rows, neighbours."""
    if isinstance(leaf, Ragged):
        return Ragged(leaf.rows[start : start + length])
    return leaf.narrow(0, start, length) if isinstance(leaf, Tensor) else leaf


def one_row(leaf: Any) -> Any:
    """The first row; of a list the longest, which is what shapes follow."""
    if isinstance(leaf, Ragged):
        return Ragged((longest(leaf),))
    return leaf if rows_of(leaf) is None else narrowed(leaf, 0, 1)


def longest(ragged: Ragged) -> Tensor:
    """The first of the rows with the most tokens."""
    return max(ragged.rows, key=lambda row: row.shape[0] if row.ndim else 0)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
