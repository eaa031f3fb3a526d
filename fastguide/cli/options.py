"""Settings as options: a command that takes a dataclass has an option for each of its fields."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

Command = TypeVar("Command", bound=Callable[..., None])


def settings_as_options(without: Iterable[str] = ()) -> Callable[[Command], Command]:
    """The decorator of a command for typer: each parameter whose type is a dataclass stands for
    its fields, whose names, types, defaults and documentation (`Args:` of the docstring) are those
    of the options; the command is given the dataclass. A tuple of numbers is written with commas.

    Args:
        without: fields that are no options and keep their defaults.
    """
    hidden = set(without)

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        groups: dict[str, tuple[type, list[str]]] = {}
        for name, parameter in inspect.signature(command).parameters.items():
            kind = hints[name]
            if not is_dataclass(kind):
                by_name = inspect.Parameter.KEYWORD_ONLY
                parameters.append(parameter.replace(annotation=kind, kind=by_name))
                continue
            assert isinstance(kind, type)
            own = list(_options(kind, hidden))
            groups[name] = (kind, [one.name for one in own])
            parameters += own

        @wraps(command)
        def called(**given: Any) -> None:
            for name, (kind, names) in groups.items():
                types = get_type_hints(kind)
                values = {one: _parsed(one, types[one], given.pop(one)) for one in names}
                given[name] = kind(**values)
            command(**given)

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {one.name: one.annotation for one in parameters}
        return called  # type: ignore[return-value]

    return decorate


def documented(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of those that it inherits from say of its fields."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, text = inspect.cleandoc(base.__doc__ or "").partition("Args:\n")
        for names, about in re.findall(r"^    ([\w, ]+): ((?:.+\n?(?:     +.+\n?)*))", text, re.M):
            found |= dict.fromkeys(names.split(", "), " ".join(about.split()).rstrip("."))
    return found


def _options(kind: type, hidden: set[str]) -> Iterable[inspect.Parameter]:
    about, types = documented(kind), get_type_hints(kind)
    for one in (one for one in fields(kind) if one.name not in hidden):
        default, option = one.default, types[one.name]
        assert default is not MISSING, f"{kind.__name__}.{one.name} has no default"
        if _is_tuple(option):
            option, default = str, ",".join(str(number) for number in default)
        help_ = about.get(one.name)
        yield inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[option, typer.Option(help=help_)],
        )


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _parsed(name: str, kind: Any, value: Any) -> Any:
    if not _is_tuple(kind):
        return value
    return numbers(name, value) if get_args(kind)[0] is int else _decimals(name, value)


def numbers(argument: str, text: str) -> tuple[int, ...]:
    """ "1,2,2" to (1, 2, 2); "" to ()."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"{argument} is {text!r}, but it should be whole numbers, as in 1,2,2")
    return tuple(int(part) for part in parts)


def _decimals(argument: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{argument} is {text!r}, but it should read like 0.05,0.1") from None
