"""What the guidance text can name: the guidances, the schedules, and their fields as options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from fastguide.common.checks import did_you_mean
from fastguide.guidance.base import Amount, Guidance


@dataclass(frozen=True)
class Option:
    """A field of a guidance or a schedule, as text has it.

    Args:
        loads: what kind of network it is, where it is one.
    """

    name: str
    hint: Any
    default: Any
    loads: str | None = None

    @property
    def required(self) -> bool:
        """Whether text must say it."""
        return self.default is MISSING

    @property
    def is_amount(self) -> bool:
        """Whether it is a scale or a weight."""
        members = get_args(self.hint)
        return all(one in members for one in get_args(Amount))

    @property
    def is_function(self) -> bool:
        """Whether only Python has it."""
        return self.loads is None and get_origin(self.hint) is Callable


def options_of(cls: Any) -> dict[str, Option]:
    """The fields of a dataclass, in order, without `guidance`; one that may be None need not be
    said.
    """
    return _options_of(cls)


@cache
def _options_of(cls: Any) -> dict[str, Option]:
    hints = get_type_hints(cls)
    found = {}
    for one in (one for one in fields(cls) if one.init):
        hint, default = hints[one.name], one.default
        if default is MISSING and NoneType in get_args(hint):
            default = None
        if hint is not Guidance:
            found[one.name] = Option(one.name, hint, default, one.metadata.get("loads"))
    return found


@cache
def _classes() -> dict[str, type]:
    from fastguide import guidance  # which holds all of them

    found = {name: getattr(guidance, name) for name in guidance.__all__}
    return {name.lower(): one for name, one in found.items() if is_dataclass(one)}  # type: ignore[misc]


@cache
def schedules() -> dict[str, type]:
    """The schedules by name."""
    return {name: one for name, one in _classes().items() if hasattr(one, "values")}


@cache
def methods() -> dict[str, type[Guidance]]:
    """The guidances that text can make, and what is done to a delta, by name in lower case."""
    found = {name: one for name, one in _classes().items() if issubclass(one, Guidance)}
    return {
        name: one
        for name, one in found.items()
        if not any(option.required and option.is_function for option in options_of(one).values())
    }


def changes(cls: type[Guidance]) -> bool:
    """Whether it is something that is done to the deltas of a guidance."""
    return get_type_hints(cls).get("guidance") is Guidance


@cache
def terms() -> tuple[str, ...]:
    """The names of what a sum can begin with."""
    return tuple(name for name, cls in methods().items() if not changes(cls))


@cache
def modifiers() -> tuple[str, ...]:
    """The names of what may be done to a term."""
    return ("rescale", *(name for name, cls in methods().items() if changes(cls)))


def amount_of(cls: type) -> str | None:
    """The option that stands first: the scale or weight."""
    return next((name for name, one in options_of(cls).items() if one.is_amount), None)


def name_of(text: str) -> str:
    """A name as `methods` has it, from any case: CFG-Zero* is cfgzerostar, clip is clipguidance."""
    key = text.lower().replace("*", "star").replace("-", "").replace("_", "")
    whole = f"{key}guidance"
    return whole if whole in methods() and key != "auto" else key  # "auto" reads as automatic


def unknown_option(cls: type, key: str, known: Iterable[str]) -> str:
    """The end of the error about it."""
    names = ", ".join(known)
    return (
        f"{cls.__name__} has no option {key!r}; its options: {names or 'none'}"
        f"{did_you_mean(key, names.split(', '))}"
    )


def schedule_forms() -> str:
    """How schedules are written, in one line."""
    forms = []
    for name, cls in schedules().items():
        needed = [f":{key.upper()}" for key, one in options_of(cls).items() if one.required]
        optional = [f"[:{key.upper()}]" for key in list(options_of(cls))[:1] if not needed]
        forms.append(name + "".join(needed + optional))
    return f"{', '.join(forms[:-1])} or {forms[-1]}"
