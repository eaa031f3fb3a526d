"""What a solver yields: linear maps over named slots. It knows no tensors and no guidance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from fastguide.options import Configured
from fastguide.process import Level

Map = Mapping[str, float]


@dataclass(frozen=True)
class Update:
    """Evaluate the network at level `at`, then replace slots by weighted sums of slots.

    Slots are "x", "denoised" (of this evaluation), "noise" (fresh standard normals) and any name
    that an earlier update kept. All sums read the old values.

    Args:
        at: the level of x; None for a map of the slots without an evaluation.
        x: the next x.
        keep: other slots to write, by name.
    """

    at: Level | None
    x: Map
    keep: Mapping[str, Map] = field(default_factory=dict)


Solver = Configured[Iterator[Update]]
