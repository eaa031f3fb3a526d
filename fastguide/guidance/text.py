"""Guidance from text: `parse("cfg:5 + pag:2@mid")`; `str(guidance)` is the way back.

    text      none, or parts joined by +
    part      a term, and what is done to its deltas: term | modifier | modifier
    term      name[:amount][@layers][,option=value...], number * term, (parts), or as Python has it:
              PAG(2, layers="mid", schedule=interval(0.3, 2.9))
    modifier  name[:value][,option=value...]

An amount is a number, one for each step (5/4/3), a schedule (linear:1:5), or one for each sample
(samples:3:5). Names are those of the classes, in any case, and so are options and defaults: what
can be read is found in the classes themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastguide.common.checks import did_you_mean, shown
from fastguide.guidance.base import Guidance, Scaled, Sum
from fastguide.guidance.brackets import closing, split
from fastguide.guidance.modifiers import Rescale
from fastguide.guidance.vocabulary import (
    Option,
    amount_of,
    changes,
    methods,
    modifiers,
    name_of,
    options_of,
    terms,
    unknown_option,
)
from fastguide.guidance.words import Load, bound, named, read

LONGEST, DEEPEST = 10_000, 20  # letters, and brackets within each other
_CALL = re.compile(r"(?:fg\.|fastguide\.)?([A-Za-z]\w*)\s*\(")
_HEAD = re.compile(r"([A-Za-z_][\w*-]*)\s*(.?)\s*(.*)", re.DOTALL)
_TIMES = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*(.*)", re.DOTALL)


def parse(
    text: str, load: Load | None = None, defaults: Mapping[str, Any] | None = None
) -> Guidance | None:
    """The guidance that `text` says; None for "none". `parse(str(guidance))` gives the same plan.

    Args:
        text: such as "cfg:4,schedule=interval:0.3:2.9 | rescale:0.7 + pag:2@mid".
        load: `load(kind, name)` gives the other networks that a text names, as in
            autoguidance:2,weak=NAME: a "model", a "classifier" or a "text_image".
            `fastguide.loader()` finds them in folders; None refuses them.
        defaults: values of the options "scale" and "schedule", of terms for which text and class
            have none.

    Raises:
        TypeError: text is no string.
        ValueError: it cannot be read; the error has the part that is wrong, what is known, and what
            is nearest.

    Example:
        >>> print(fastguide.parse("CFG(3) + pag=1, layers=2/5"))
        cfg:3 + pag:1@2/5
    """
    if not isinstance(text, str):
        raise TypeError(f"guidance is {shown(text)}, but it should be a text such as 'cfg:3'")
    if len(text) > LONGEST:
        raise ValueError(f"guidance has {len(text)} letters, but it should have at most {LONGEST}")
    if text.strip().lower() == "none":
        return None
    try:
        split(text, "")
    except ValueError as error:
        raise ValueError(f"guidance is {error}") from None
    return _Reader(load, defaults or {}).parts(text)


class _Reader:
    """Reads one text; it knows how deep within brackets it is."""

    def __init__(self, load: Load | None, defaults: Mapping[str, Any]) -> None:
        self.load, self.defaults, self.depth = load, defaults, 0

    def parts(self, text: str) -> Guidance:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"guidance has more than {DEEPEST} brackets within each other")
        found = tuple(self.part(part) for part in _split(text, "+"))
        self.depth -= 1
        return found[0] if len(found) == 1 else Sum(found)

    def part(self, text: str) -> Guidance:
        first, *rest = _split(text, "|")
        found = self.term(first)
        for modifier in rest:
            found = self.modified(found, modifier)
        return found

    def term(self, text: str) -> Guidance:
        times, called = _TIMES.fullmatch(text), _CALL.match(text)
        if times is not None:
            return _made(text, Scaled, guidance=self.term(times[2]), times=float(times[1]))
        if text.startswith("(") and closing(text) == len(text) - 1:
            return self.parts(text[1:-1])
        if called is not None:
            return self.called(text, called)
        cls, entries = self.headed(text, text, terms(), "a method is one of")
        values = self.values(text, cls, entries, amount_of(cls))
        return self.made(text, cls, values)

    def modified(self, guidance: Guidance, text: str) -> Guidance:
        part, called = f"| {text}", _CALL.match(text)
        if called is not None and closing(text) == len(text) - 1:  # apg(radius=2.5)
            text = f"{called[1]}:{text[called.end() : -1]}"
        cls, entries = self.headed(part, text, modifiers(), "after a method and | comes one of")
        values = self.values(part, cls, entries, next(iter(options_of(cls)), None))
        if cls is Rescale:
            return _made(part, guidance.rescale, **values)
        return _made(part, cls, guidance=guidance, **values)

    def headed(
        self, part: str, text: str, known: Sequence[str], what: str
    ) -> tuple[type[Any], list[str]]:
        """The class that `text` begins with, and its entries."""
        head = _HEAD.fullmatch(text)
        name = name_of(head[1] if head else text)
        if head is None or name not in known:
            hint = did_you_mean(name, known)
            if name in modifiers():
                hint = f"; write it after one, as in cfg:3 | {name}"
            elif name in terms():
                hint = f"; terms are joined by +, as in cfg:3 + {name}"
            raise ValueError(f"guidance has {part!r}, but {what} {', '.join(known)}{hint}")
        mark, rest = head[2], head[3]
        if mark not in ("", ":", "=", "@", ","):
            right = f"{name}:{mark}{rest}" if re.match(r"[\d.+-]", mark) else f"{name}:3"
            raise ValueError(f"guidance has {part!r}, but it should read like {right}")
        entries = f"{'' if mark in ':=' else mark}{rest}"
        return Rescale if name == "rescale" else methods()[name], split(entries, ",")

    def values(
        self, part: str, cls: type[Any], entries: Sequence[str], first: str | None
    ) -> dict[str, Any]:
        """The values of entries; what begins the first one without a name is the option `first`,
        and what follows an @ there are layers.
        """
        options, values = options_of(cls), {}
        for number, entry in enumerate(entries):
            pairs = [named(entry)]
            if number == 0 and not pairs[0][0]:
                amount, *layers = split(entry, "@", 1)
                pairs = [(first or amount, amount)] if amount else []
                pairs += [("layers", one) for one in layers]
            for key, text in pairs:
                if not key:
                    like = "an option, as in name=value; a : stands between a schedule's numbers"
                    raise ValueError(f"guidance has {part!r}, where {entry!r} should be {like}")
                if key not in options:
                    raise ValueError(
                        f"guidance has {part!r}, but {unknown_option(cls, key, options)}"
                    )
                if key in values:
                    raise ValueError(f"guidance has {part!r}, where {key} is given twice")
                values[key] = self.read(part, options[key], text)
        return values

    def read(self, part: str, option: Option, text: str) -> Any:
        try:
            return read(option, text, self.load)
        except (ValueError, TypeError) as error:
            raise ValueError(f"guidance has {part!r}, where {error}") from error

    def made(self, part: str, cls: type[Guidance], values: dict[str, Any]) -> Guidance:
        """The guidance, with what the text does not say."""
        for key, option in options_of(cls).items():
            if key in values:
                continue
            if key in self.defaults and (option.required or option.default is None):
                values[key] = self.defaults[key]
            elif option.required:
                name, first = cls.__name__.lower(), key == amount_of(cls)
                right = f"{name}:3" if first else f"{key}={'NAME' if option.loads else 3}"
                what = "another network" if option.loads else f"a {key}"
                raise ValueError(f"guidance has {part!r}, but {name} needs {what}: {right}")
            else:
                values[key] = option.default
        return _made(part, cls, **values)

    def called(self, text: str, called: re.Match[str]) -> Guidance:
        """Python's own form: CFG(3, every=2), REG(CFG(3), every=2), CFG(3).rescale(0.7)."""
        name, end = name_of(called[1]), closing(text)
        if name not in methods():
            hint = did_you_mean(name, methods())
            raise ValueError(
                f"guidance has {text!r}, but a method is one of {', '.join(methods())}{hint}"
            )
        cls, within = methods()[name], text[called.end() : end]
        pieces, values = split(within, ",") if within.strip() else [], {}
        if changes(cls):
            if not pieces:
                raise ValueError(f"guidance has {text!r}, but {name} needs a guidance: CFG(3)")
            values["guidance"] = self.parts(re.sub(r"^guidance\s*=\s*", "", pieces.pop(0)))
        try:
            values |= bound(cls, pieces, lambda option, one: read(option, one, self.load))
        except (ValueError, TypeError) as error:
            raise ValueError(f"guidance has {text!r}, where {error}") from error
        found, rest = self.made(text, cls, values), text[end + 1 :].strip()
        while rest:
            if not re.match(r"\.\s*rescale\s*\(", rest):
                raise ValueError(f"guidance has {text!r}, but {rest!r} is neither .rescale() nor +")
            begin, end = rest.index("("), closing(rest)
            found = self.modified(found, f"rescale{rest[begin : end + 1]}")
            rest = rest[end + 1 :].strip()
        return found


def _split(text: str, separator: str) -> list[str]:
    found = split(text, separator)
    if not all(found):
        raise ValueError(
            f"guidance has {text!r}, where something is missing beside {separator!r}"
            if len(found) > 1
            else f"guidance is {text!r}, but it should be none, or a sum such as cfg:3 + pag:2@mid"
        )
    return found


def _made(part: str, make: Any, **values: Any) -> Any:
    """What `make` makes of them; its errors with the part of the text."""
    try:
        return make(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"guidance has {part!r}: {error}") from error
