"""Single values of the guidance text, by the type of the field that they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from fastguide.common.checks import did_you_mean
from fastguide.guidance.base import Factor
from fastguide.guidance.brackets import closing, split, unquoted
from fastguide.guidance.vocabulary import (
    Option,
    options_of,
    schedule_forms,
    schedules,
    unknown_option,
)
from fastguide.staging.perturbation import LayerNames

Load = Callable[[str, str], Any]
"""`load(kind, name)`: the "model", "classifier" or "text_image" that a text calls `name`."""

SAMPLES = "samples"  # the word before one number per sample


def read(option: Option, text: str, load: Load | None = None) -> Any:
    """The value that `text` says.

    Raises:
        ValueError: it is none for this option.
    """
    hint, members = option.hint, get_args(option.hint) or (option.hint,)
    if option.loads is not None:
        return _loaded(option, text, load)
    if text.lower() == "none" and NoneType in members:
        return None
    if option.is_amount:
        return _amount(option.name, text)
    if hint == Factor:
        return read_schedule(text, option.name)
    if hint == LayerNames:
        layers = [_layer(one) for one in _listed(text)]
        return layers if len(layers) > 1 else layers[0]
    if get_origin(hint) is Literal:
        word = _plain(text)
        return next((one for one in members if one.lower() == word.lower()), word)
    if str in members:
        return _plain(text)
    if Sequence[int] in members or hint == Sequence[int]:
        whole = [_number(option.name, one, int) for one in _listed(text)]
        return whole[0] if int in members and len(whole) == 1 else whole
    if Tensor in members:
        numbers = [_number(option.name, one, int) for one in _listed(text)]
        return torch.tensor(numbers, dtype=torch.int64, device="cpu")
    if bool in members:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{option.name} is {text!r}, but it should be true or false")
        return text.lower() == "true"
    if any(get_origin(member) is tuple for member in members):
        return tuple(_number(option.name, one, float) for one in _listed(text))
    if int in members or float in members:
        return _number(option.name, text, int if int in members else float)
    raise ValueError(f"{option.name} is {text!r}, but only Python can give it")


def read_schedule(text: str, name: str = "schedule") -> Any:
    """A schedule, as interval:0.3:2.9:over=t or as Python has it; or one factor for each step.

    Raises:
        ValueError: it is none.
    """
    head, tail = _schedule_name(text)
    if head not in schedules():
        if "/" in text or text.startswith("["):
            return [_number(name, one, float) for one in _listed(text)]
        hint = did_you_mean(head, schedules())
        raise ValueError(f"{name} is {text!r}, but it should be {schedule_forms()}{hint}")
    cls = schedules()[head]
    try:
        values = bound(cls, split(tail, ":,") if tail else [], read)
        for key, option in options_of(cls).items():
            if option.required and key not in values:
                raise ValueError(f"{key} is missing")
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is {text!r}, but it should be {schedule_forms()}: {error}"
        ) from error


def bound(cls: type, pieces: Sequence[str], reads: Callable[[Option, str], Any]) -> dict[str, Any]:
    """The values of a dataclass's options, in order and then by name, as in a call.

    Raises:
        ValueError: one is too many, unknown, there twice, or not read.
    """
    options = options_of(cls)
    values: dict[str, Any] = {}
    for number, piece in enumerate(pieces):
        key, text = named(piece)
        if not key:
            if number >= len(options):
                raise ValueError(f"{piece!r} is one more than {cls.__name__} takes")
            key = list(options)[number]
        if key not in options:
            raise ValueError(unknown_option(cls, key, options))
        if key in values:
            raise ValueError(f"{key} is given twice")
        values[key] = reads(options[key], text)
    return values


def named(piece: str) -> tuple[str, str]:
    """Name and value of "name=value"; no name where there is none."""
    key, equals, text = (one.strip() for one in piece.partition("="))
    return (key.lower(), text) if equals and key.isidentifier() else ("", piece)


def _amount(name: str, text: str) -> Any:
    """A number, one for each step (1/2/3), a schedule, or one for each sample (samples:1:2)."""
    head, tail = _schedule_name(text)
    if head == SAMPLES:
        numbers = [_number(name, one, float) for one in split(tail, ":,")]
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")
    if head in schedules():
        return read_schedule(text, name)
    numbers = [_number(name, one, float) for one in _listed(text)]
    return numbers if len(numbers) > 1 else numbers[0]


def _schedule_name(text: str) -> tuple[str, str]:
    """What stands before and after the colon, or before and within the brackets."""
    head, _, tail = text.partition(":")
    if "(" in head:
        begin = text.index("(")
        if closing(text) == len(text) - 1:
            head, tail = text[:begin], text[begin + 1 : -1]
    head = head.strip().lower()
    return head.removeprefix("fg.").removeprefix("fastguide."), tail.strip()


def _listed(text: str) -> list[str]:
    """The elements of 1/2/3, of [1, 2, 3] or of (1, 2, 3)."""
    if text[:1] in ("[", "(") and closing(text) == len(text) - 1:
        return [one for one in split(text[1:-1], ",/") if one]
    return split(text, "/")


def _plain(text: str) -> str:
    inside = unquoted(text)
    return text if inside is None else inside


def _layer(text: str) -> str | int:
    if not text or (":" in text and unquoted(text) is None):
        raise ValueError(
            f"layers has {text!r}, but layers are names and indices, as in pag:2@mid or @2/5"
        )
    return int(text) if text.lstrip("-").isdigit() else _plain(text)


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} is {text!r}, but it should be {wanted}") from None


def _loaded(option: Option, text: str, load: Load | None) -> Any:
    name = _plain(text)
    if name.startswith("<"):
        raise ValueError(f"{option.name} is {name}, which was not loaded and so has no name")
    if load is None:
        raise ValueError(
            f"{option.name} is {name!r}, another network, but none can be loaded here; in Python "
            "give load=fastguide.loader()"
        )
    return load(option.loads or "", name)
