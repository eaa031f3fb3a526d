"""Guidance as the text that `fastguide.parse` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastguide.guidance.base import Guidance, Modified, Scaled, Sum, as_amount
from fastguide.guidance.brackets import quoted
from fastguide.guidance.modifiers import Rescale
from fastguide.guidance.vocabulary import (
    Option,
    amount_of,
    changes,
    methods,
    options_of,
    schedules,
)
from fastguide.guidance.words import SAMPLES


def said(guidance: Guidance) -> str:
    """The text of `guidance`. What has none, such as a function, is <in brackets>."""
    cls = type(guidance)
    if isinstance(guidance, Sum):
        return " + ".join(said(part) for part in guidance.parts)
    if isinstance(guidance, Scaled):
        inner = said(guidance.guidance)
        whole = isinstance(guidance.guidance, Sum) or "|" in inner
        return f"{_number(guidance.times)}*{f'({inner})' if whole else inner}"
    if isinstance(guidance, Modified) and guidance.name == "rescales":
        options = _options(guidance.value, options_of(Rescale), "share")
        return f"{_bracketed(guidance.guidance)} | rescale{options}"
    if methods().get(cls.__name__.lower()) is not cls:
        return f"<{cls.__name__}>"
    name = cls.__name__.lower()
    if changes(cls):
        within: Any = guidance
        return f"{_bracketed(within.guidance)} | {name}{_options(guidance, options_of(cls), None)}"
    return f"{name}{_options(guidance, options_of(cls), amount_of(cls))}"


def _bracketed(guidance: Guidance) -> str:
    inner = said(guidance)
    return f"({inner})" if isinstance(guidance, Sum) else inner


def _options(guidance: Any, options: Mapping[str, Option], first: str | None) -> str:
    """The value of `first`, and all values that are not the default ones."""
    head, tail = "", []
    for name, option in options.items():
        value = getattr(guidance, name)
        if name == first and value is not None:
            head = f":{_said(option, value)}{head}"
        elif _is_default(value, option.default) or (name == first and value is None):
            continue
        elif name == "layers" and first is not None:
            head += f"@{_said(option, value)}"
        else:
            tail.append(f"{name}={_said(option, value)}")
    separator = "," if head else ":"
    return head + (separator + ",".join(tail) if tail else "")


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, (list, tuple, range)) and not len(value):
        return True
    return value is default or (isinstance(value, (str, int, float)) and value == default)


def _said(option: Option, value: Any) -> str:
    if option.loads is not None:
        of = getattr(value, "__self__", value)  # a method of what was loaded
        source = getattr(of, "source", "")
        return quoted(source, "/:@") if source else f"<{type(of).__name__}>"
    value = as_amount(value) if option.is_amount else value
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Tensor) and value.ndim == 1 and option.is_amount:
        return ":".join([SAMPLES, *map(_number, value.double().tolist())])
    if isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point():
        return "/".join(map(str, value.tolist()))
    if isinstance(value, (list, tuple, range)):
        return "/".join(_said(option, one) for one in value)
    if type(value) in schedules().values():
        return _schedule(value)
    try:
        return _number(value)
    except (TypeError, ValueError, OverflowError):
        return f"<{type(value).__name__}>"


def _schedule(value: Any) -> str:
    pieces = [type(value).__name__]
    for number, (name, option) in enumerate(options_of(type(value)).items()):
        one = getattr(value, name)
        if option.required or (number == 0 and one != option.default):
            pieces.append(_said(option, one))
        elif one != option.default:
            pieces.append(f"{name}={_said(option, one)}")
    return ":".join(pieces)


def _number(value: Any) -> str:
    """A number in its shortest form."""
    number = float(value)
    if number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    return repr(number).replace("e+", "e")
