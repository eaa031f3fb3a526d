"""When is a row slower? Times of calls that took turns, as ratios that no drift moves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

SLOWER = 1.10  # than the base by more than this, and by more than its spread


@dataclass(frozen=True)
class Ratio:
    """Of the time of one call to that of another.

    Args:
        value: the median over the rounds.
        spread: half of what the middle half of the rounds spans.
        rounds: how many there were.
    """

    value: float
    spread: float
    rounds: int

    def exceeds(self, limit: float) -> bool:
        """Whether it is above `limit`, and by more than its spread."""
        return self.value > limit and self.value - self.spread > limit

    @property
    def is_slower(self) -> bool:
        """Than the base that it is relative to: by more than SLOWER, and more than its spread."""
        return self.value > SLOWER and self.value - self.spread > 1.0

    @property
    def is_faster(self) -> bool:
        """The same the other way round; for information."""
        return self.value < 1 / SLOWER and self.value + self.spread < 1.0


def ratio_of(ours: Sequence[float], other: Sequence[float]) -> Ratio:
    """Each of `ours` `[n]` over the mean of the `other` `[n + 1]` before and after it."""
    if len(other) != len(ours) + 1:
        raise ValueError(f"other has {len(other)} times, but it should have {len(ours) + 1}")
    around = [(a + b) / 2 for a, b in pairwise(other)]
    if min(around) <= 0.0:
        raise ValueError("other took less time than the clock can tell; it should do more at once")
    ratios = [mine / theirs for mine, theirs in zip(ours, around, strict=True)]
    if len(ratios) < 2:
        return Ratio(ratios[0], 0.0, 1)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(middle, (high - low) / 2, len(ratios))
