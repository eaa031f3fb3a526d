"""Test cases of several arguments: not each value with each, but fewer that meet in pairs."""

import itertools
from collections.abc import Sequence

import pytest


def pairs(first: Sequence, second: Sequence, third: Sequence) -> list[tuple]:
    """(a, b, c) such that any two values of different arguments meet: a Latin square, no more
    cases than of the first two, which must have as many values as the third at least."""
    assert min(len(first), len(second)) >= len(third)
    return [
        (a, b, third[(i + j) % len(third)])
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


def thin(*arguments: Sequence, n: int = 2) -> list:
    """The product of the arguments. One case of `n` runs always, such that each value meets some of
    every other argument's; the others are marked `full`."""
    cases = itertools.product(*(enumerate(values) for values in arguments))
    found = []
    for case in cases:
        marks = [pytest.mark.full] if sum(place for place, _ in case) % n else []
        found.append(pytest.param(*(value for _, value in case), marks=marks))
    return found
