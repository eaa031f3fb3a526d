"""Which requests run together next: of one key, the oldest first, and none is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastguide.serving.live import Live


def choose(
    live: Sequence[Live], key: Callable[[Live], object], most: int, patience: int
) -> list[Live]:
    """The next batch: the first request in turn, and as many of its key as there may be, in turn.

    In turn is first who was passed over `patience` times or more, by how often; then by priority;
    then by age. So none is passed over more than `patience + len(live) - 1` times: from `patience`
    on only those go first that were passed over as often, and each of them once.
    """
    ordered = sorted(live, key=lambda one: _turn(one, patience))
    first = key(ordered[0])
    chosen = [one for one in ordered if key(one) == first][:most]
    ran = set(map(id, chosen))
    for one in live:
        one.passed = 0 if id(one) in ran else one.passed + 1
        one.longest = max(one.longest, one.passed)
    return chosen


def _turn(one: Live, patience: int) -> tuple[float, float, int]:
    late = one.passed if one.passed >= patience else 0
    return (-late, -one.priority, one.order)
