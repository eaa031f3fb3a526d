"""Whether tensors are the ones that were seen before, unwritten since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Seen:
    """Tensors as they are now.

    Args:
        leaves: tensors; other objects count by identity.
        contents: whether those that count no versions, as under `torch.inference_mode`, are
            compared by a copy of their contents, which waits for the device.
    """

    def __init__(self, leaves: Sequence[Any] = (), contents: bool = False) -> None:
        self.leaves = list(leaves)
        self._versions = [_version(leaf) for leaf in self.leaves]
        self._copies = [
            leaf.clone() if contents and isinstance(leaf, Tensor) and leaf.is_inference() else None
            for leaf in self.leaves
        ]

    def same(self, leaves: Sequence[Any]) -> bool:
        """Whether these are they."""
        if len(leaves) != len(self.leaves):
            return False
        for now, old, version, copy in zip(
            leaves, self.leaves, self._versions, self._copies, strict=True
        ):
            if now is not old or _version(now) != version:
                return False
            if copy is not None and not torch.equal(now, copy):
                return False
        return True


def _version(leaf: Any) -> int:
    return leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0
