"""Text split where nothing encloses the separator: neither brackets nor quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator

_PAIRS = {")": "(", "]": "["}


def split(text: str, separators: str, most: int = -1) -> list[str]:
    """The pieces of `text` between any of the `separators`, stripped; at most `most` cuts. The plus
    of a number such as 1e+5 separates nothing.

    Raises:
        ValueError: a bracket or a quote is open, or closed without one.
    """
    pieces: list[str] = []
    begin = 0
    for i, letter in _outside(text):
        if letter not in separators or (letter == "+" and _of_number(text, i)):
            continue
        if len(pieces) == most:
            break
        pieces.append(text[begin:i].strip())
        begin = i + 1
    return [*pieces, text[begin:].strip()]


def closing(text: str) -> int:
    """Where the bracket that `text` opens first is closed."""
    begin = next(i for i, letter in enumerate(text) if letter in "([")
    return next(i for i, letter in _outside(text) if i > begin and letter in _PAIRS)


def unquoted(text: str) -> str | None:
    """What stands between quotes, if all of `text` does."""
    if len(text) < 2 or text[0] not in "\"'" or text[-1] != text[0]:
        return None
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)


def quoted(word: str, also: str = "") -> str:
    """`word` as it can stand anywhere: in quotes where it could be read as something else. It may
    have the letters of `also` without quotes.
    """
    plain = re.fullmatch(rf"[\w.*{re.escape(also)}-]+", word)
    if plain and not _is_number(word) and word.lower() != "none":
        return word
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _outside(text: str) -> Iterator[tuple[int, str]]:
    """The letters outside quotes and brackets; the last bracket of a pair counts as outside."""
    open_: list[str] = []
    quote, i = "", 0
    while i < len(text):
        letter = text[i]
        if quote:
            if letter == "\\":
                i += 1
            elif letter == quote:
                quote = ""
        elif letter in "\"'":
            quote = letter
        elif letter in "([":
            open_.append(letter)
        elif letter in _PAIRS and (not open_ or open_.pop() != _PAIRS[letter]):
            raise ValueError(f"{text!r}, where {letter!r} closes nothing")
        elif not open_:
            yield i, letter
        i += 1
    if quote or open_:
        raise ValueError(f"{text!r}, where {quote or open_[-1]!r} is not closed")


def _of_number(text: str, i: int) -> bool:
    return bool(re.search(r"[\d.][eE]$", text[:i]) and re.match(r"\+\d", text[i:]))
