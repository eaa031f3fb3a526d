"""Checks of single arguments, with one rule for errors: TypeError where a value is of a wrong kind,
ValueError where it is of the right kind, but cannot be taken.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

_SHOWN = 200  # characters of a value in an error


def shown(value: Any) -> str:
    """`value` as errors show it: whatever it is, not too long."""
    try:
        text = repr(value)
    except Exception:  # ints of too many digits have no repr, nor have some objects
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check_int(name: str, value: Any, low: int = 1, high: int | None = None) -> None:
    """Raise unless `value` is an integer in [low, high]."""
    wanted = f"an int of {low} or more" if high is None else f"an int in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {shown(value)}, but it should be {wanted}")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} is {shown(value)}, but it should be {wanted}")


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_: bool = False
) -> None:
    """Raise unless `value` is a finite number in [low, high], or with `open_` in (low, high)."""
    wanted = _wanted(low, high, open_)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {shown(value)}, but it should be {wanted}")
    number = float(value) if is_finite(value) else math.nan
    if not (low < number < high if open_ else low <= number <= high):
        raise ValueError(f"{name} is {shown(value)}, but it should be {wanted}")


def is_finite(value: Any) -> bool:
    """Whether a number is one in double precision: 10**400 is not."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_bool(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}, but it should be True or False")


def check_name(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Raise unless `value` is one of the names `known`."""
    wanted = f"one of {', '.join(map(repr, known))}"
    if not isinstance(value, str):
        raise TypeError(f"{name} is {shown(value)}, but it should be {wanted}")
    if value not in known:
        hint = did_you_mean(value, known)
        raise ValueError(f"{name} is {shown(value)}, but it should be {wanted}{hint}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` most likely stands for, in any case and with any of `-_ .`
    between; None where none is near.
    """
    key, by_key = _key(name), {_key(one): one for one in reversed(list(known))}
    found = difflib.get_close_matches(key, by_key, n=3, cutoff=0.6)
    found.sort(key=lambda one: sorted(one) != sorted(key))  # letters that changed places first
    return by_key[found[0]] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: "; did you mean 'ddim'?", or nothing."""
    found = nearest(name, known)
    return "" if found is None else f"; did you mean {found!r}?"


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in "-_ .")


def _wanted(low: float, high: float, open_: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "a finite number"
    if high == math.inf:
        return f"a finite number above {low:g}" if open_ else f"a finite number of {low:g} or more"
    return f"a number in {'(' if open_ else '['}{low:g}, {high:g}{')' if open_ else ']'}"
