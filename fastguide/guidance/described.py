"""A guidance as data that JSON can hold, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fastguide.guidance.base import Guidance, Modified, Scaled, Sum
from fastguide.guidance.modifiers import Rescale

KIND = "kind"


def described(guidance: Guidance) -> dict[str, Any]:
    """The guidance as a dict of numbers, strings, lists and dicts, each with its "kind".

    Raises:
        TypeError: it holds what is no data: another network, a tensor, a function.
    """
    found = _described(guidance, "guidance")
    assert isinstance(found, dict)
    return found


def guidance_of(data: Mapping[str, Any]) -> Guidance:
    """The inverse of `described`.

    Raises:
        ValueError, TypeError: it describes none.
    """
    found = _made(data)
    if not isinstance(found, Guidance):
        raise ValueError(f"guidance is {data!r}, which describes no guidance")
    return found


def _described(value: Any, name: str) -> Any:
    if isinstance(value, Sum):
        return {KIND: "Sum", "parts": [_described(part, name) for part in value.parts]}
    if isinstance(value, Modified) and isinstance(value.value, Rescale):
        inner = _described(value.guidance, name)
        return {KIND: "rescale", "guidance": inner, **_fields(value.value)}
    if isinstance(value, Scaled):
        return {KIND: "Scaled", **_fields(value)}
    if type(value).__name__ in _kinds() and is_dataclass(value):
        return {KIND: type(value).__name__, **_fields(value)}
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple, range)):
        return [_described(one, name) for one in value]
    raise TypeError(f"{name} is a {type(value).__name__}, which JSON cannot hold")


def _fields(value: Any) -> dict[str, Any]:
    names = [field.name for field in fields(value) if field.init]
    return {name: _described(getattr(value, name), name) for name in names}


def _made(data: Any) -> Any:
    if isinstance(data, str) and data in ("inf", "-inf"):
        return float(data)
    if isinstance(data, (list, tuple)):
        return [_made(one) for one in data]
    if not isinstance(data, Mapping):
        return data
    known = {str(name): _made(value) for name, value in data.items() if name != KIND}
    kind = data.get(KIND)
    if kind == "Sum":
        return Sum(tuple(known["parts"]))
    if kind == "Scaled":
        return Scaled(**known)
    if kind == "rescale":
        return known.pop("guidance").rescale(**known)
    if kind not in _kinds():
        raise ValueError(f"kind is {kind!r}, but it should be one of {', '.join(_kinds())}")
    return _kinds()[kind](**known)


def _kinds() -> dict[str, Any]:
    """Guidances and schedules by name."""
    from fastguide import guidance

    found = {name: getattr(guidance, name) for name in guidance.__all__ if name != "Guidance"}
    return {name: one for name, one in found.items() if isinstance(one, type)}
