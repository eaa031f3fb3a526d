"""Test cases of three arguments: not each value with each, but each pair of values of two."""

from collections.abc import Sequence


def pairs(first: Sequence, second: Sequence, third: Sequence) -> list[tuple]:
    """(a, b, c) such that any two values of different arguments meet: a Latin square, no more
    cases than of the first two, which must have as many values as the third at least."""
    assert min(len(first), len(second)) >= len(third)
    return [
        (a, b, third[(i + j) % len(third)])
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]
