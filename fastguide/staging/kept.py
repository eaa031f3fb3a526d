"""What the blocks of a network returned for clean rows, kept for branches that go on from there.

Kept is only what a branch can still read: what a later block or the network itself is given, and of
that the rows that branches begin as. A network whose blocks pass one state along keeps one block's
output for each place where a branch begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fastguide.staging.probe import Calls


@dataclass(frozen=True)
class Cut:
    """Rows that go their own way from the first of `layers` on; they begin as these `blocks` of the
    batch that keeps.
    """

    layers: tuple[str, ...]
    blocks: tuple[int, ...]


class Gone(NamedTuple):
    """A tensor that nobody reads any more."""

    shape: tuple[int, ...]  # of one row
    like: Tensor


class Part(NamedTuple):
    """The rows of some blocks."""

    rows: Tensor
    blocks: tuple[int, ...]


class Kept:
    """Of one batch of `count` blocks of rows."""

    def __init__(self, cuts: Sequence[Cut], count: int) -> None:
        self.cuts, self.count = tuple(cuts), count
        self._answers: dict[tuple[str, int], tuple[list[Any], TreeSpec, bool]] = {}

    @property
    def bytes(self) -> int:
        """What is held."""
        leaves = [leaf for leaves, _, _ in self._answers.values() for leaf in leaves]
        return sum(leaf.rows.nbytes for leaf in leaves if isinstance(leaf, Part))

    def put(
        self, path: str, number: int, out: Any, calls: Calls, begins: Sequence[int], rows: int
    ) -> None:
        """Keep what the block returned, as far as it is needed.

        Args:
            calls: what is known of the network's blocks.
            begins: where in their order each cut's rows begin.
            rows: of the batch.
        """
        call = calls[path, number]
        if all(call.order >= begin for begin in begins):
            return
        leaves, spec = tree_flatten(out)
        found: list[Any] = []
        for i, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                found.append(leaf)
                continue
            leaf = leaf.detach() if leaf.requires_grad else leaf
            wanted = sorted(
                {
                    block
                    for cut, begin in zip(self.cuts, begins, strict=True)
                    if call.order < begin and call.last_use[i] >= begin
                    for block in cut.blocks
                }
            )
            if not wanted and leaf.is_floating_point():
                found.append(Gone(tuple(leaf.shape[1:]), leaf.new_full((), torch.nan)))
                continue
            blocks = tuple(wanted) or tuple(range(self.count))
            told = call.returned[i]
            in_rows = leaf.ndim > 0 and told is not None and told.shape[0] == 1
            if not in_rows or leaf.shape[0] != rows:
                if self.count > 1:
                    raise ValueError(
                        f"the block {path!r} returns {tuple(leaf.shape)} for {rows} rows, in which "
                        "no rows can be told apart; with rows='sequential' it can be guided"
                    )
                found.append(Part(leaf.clone() if call.written else leaf, (0,)))
                continue
            mine = take(leaf, blocks, self.count)
            copied = call.written or len(blocks) < self.count
            found.append(Part(mine.clone() if copied else mine, blocks))
        self._answers[path, number] = (found, spec, call.written)

    def answer(self, path: str, number: int, blocks: tuple[int, ...], rows: int) -> Any:
        """What the block returned for the rows of `blocks`, in that order."""
        leaves, spec, written = self._answers[path, number]
        found = []
        for leaf in leaves:
            if isinstance(leaf, Gone):  # NaN, so that a read which was not foreseen shows
                found.append(leaf.like.expand(rows, *leaf.shape))
            elif isinstance(leaf, Part):
                places = tuple(leaf.blocks.index(block) for block in blocks)
                one = take(leaf.rows, places, len(leaf.blocks))
                found.append(one.clone() if written else one)
            else:
                found.append(leaf)
        return tree_unflatten(found, spec)


def take(leaf: Tensor, blocks: Sequence[int], count: int) -> Tensor:
    """The rows of some of `count` blocks, a view where they are neighbours."""
    if tuple(blocks) == tuple(range(count)):
        return leaf
    each = leaf.shape[0] // count
    if list(blocks) == list(range(blocks[0], blocks[0] + len(blocks))):
        return leaf.narrow(0, blocks[0] * each, len(blocks) * each)
    return torch.cat([leaf.narrow(0, block * each, each) for block in blocks])
