"""Damaged checkpoints: descriptions, weights and files of every wrong kind, read under limits.

Where a mutation changes the weights on purpose, the digest is made right again, so that it is the
checks behind the digest that must find it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attack import Attack, Broken, draw
from nursery import Limits, Nursery

KINDS = {"dit": "load", "unet": "load", "encoder": "classifier", "pair": "clip"}
HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**400, 1.5, -0.0),
    *(1e308, 5e-324, "", "x", "DiT", "Flow", "VP", "x" * 5000, "\ud800", "a\u0000b", "../../x"),
    *([], [1], [1] * 1000, [[]], {}, {"name": "DiT"}, ["a", "b", "c"], [1e9], [True]),
]
RAW = ["NaN", "Infinity", "1e999", "[" * 100_000, '{"a":' * 5000, "1" * 5000, "tru", "'x'", "\\u12"]
LIMITS = Limits(seconds=20.0, memory=600 << 20)


def attack(seed: int, numbers: range) -> Counter[str]:
    """Each number is one checkpoint with one, two or three mutations."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place, Nursery("victim") as nursery:
        base = Path(place) / "base"
        made = nursery.call("make_checkpoints", [str(base)])
        if made.error or made.signal:
            raise RuntimeError(f"the checkpoints to damage cannot be made: {made}")
        for number, source in draw(seed, numbers):
            kind = source.choice(list(KINDS))
            folder = Path(place) / str(number)
            shutil.copytree(base / kind, folder)
            done = [source.choice(MUTATIONS) for _ in range(source.choice((1, 1, 1, 2, 3)))]
            for mutate in done:
                mutate(folder, source)
            found = nursery.call("read_and_run", [str(folder), KINDS[kind]], LIMITS)
            names = " and ".join(mutate.__name__ for mutate in done)
            if found.signal or (found.error and "CheckpointError" not in found.error):
                raise Broken(f"checkpoint {number}, {kind} with {names}: {found}")
            if found.memory > LIMITS.memory:
                raise Broken(f"checkpoint {number}, {kind} with {names} held {found.memory} bytes")
            outcomes["refused as a CheckpointError" if found.error else "a model all the same"] += 1
            shutil.rmtree(folder)
    return outcomes


def value(folder: Path, source: random.Random) -> None:
    """One value of the description becomes a hostile one."""

    def change(parent: Any, key: Any) -> None:
        parent[key] = source.choice(HOSTILE)

    _at_random(folder, source, change)


def near(folder: Path, source: random.Random) -> None:
    """One value of the description becomes another of its kind."""

    def change(parent: Any, key: Any) -> None:
        old = parent[key]
        if isinstance(old, bool) or not isinstance(old, (int, float)):
            parent[key] = [old] if isinstance(old, list) else f"{old}x"
        else:
            parent[key] = source.choice((old + 1, old - 1, old * 2, old * 1000, -old, old / 3))

    _at_random(folder, source, change)


def missing(folder: Path, source: random.Random) -> None:
    """One key of the description is gone."""

    def change(parent: Any, key: Any) -> None:
        del parent[key]

    _at_random(folder, source, change)


def unknown(folder: Path, source: random.Random) -> None:
    """The description has a key too many."""

    def change(parent: Any, key: Any) -> None:
        if isinstance(parent, dict):
            parent[f"{key}_"] = parent[key]

    _at_random(folder, source, change)


def raw(folder: Path, source: random.Random) -> None:
    """One value of the description's text becomes what is no JSON, or too much of it."""

    def change(parent: Any, key: Any) -> None:
        parent[key] = "@here@"

    _at_random(folder, source, change)
    path = folder / "model.json"
    if path.is_file():
        text = path.read_bytes().replace(b'"@here@"', source.choice(RAW).encode())
        path.write_bytes(text)


def twice(folder: Path, source: random.Random) -> None:
    """A key of the description comes twice."""
    path = folder / "model.json"
    if path.is_file():
        path.write_bytes(path.read_bytes().replace(b"{", b'{"format": 1,', 1))


def letters(folder: Path, source: random.Random) -> None:
    """Some bytes of either file change, without a new digest."""
    path = folder / source.choice(("model.json", "model.safetensors"))
    if not path.is_file() or path.stat().st_size > 1 << 30:
        return
    data = bytearray(path.read_bytes() or b" ")
    for _ in range(source.choice((1, 1, 5, 50))):
        place = source.randrange(len(data))
        way = source.randrange(3)
        if way == 0:
            data[place] ^= 1 << source.randrange(8)
        elif way == 1:
            data[place:place] = source.randbytes(source.randrange(1, 9))
        else:
            del data[place : place + source.randrange(1, 9)]
            data = data or bytearray(b" ")
    path.write_bytes(bytes(data))


def length(folder: Path, source: random.Random) -> None:
    """Either file is cut, or goes on."""
    path = folder / source.choice(("model.json", "model.safetensors"))
    if path.is_file():
        size = path.stat().st_size
        os.truncate(path, source.choice((0, 1, 7, 8, size // 2, max(0, size - 1), size + 1)))


def special(folder: Path, source: random.Random) -> None:
    """Either file is no file."""
    path = folder / source.choice(("model.json", "model.safetensors"))
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    way = source.randrange(7)
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        path.mkdir()
    elif way < 6:
        path.symlink_to((path.name, "/dev/zero", "/dev/urandom", "nowhere")[way - 2])


def sparse(folder: Path, source: random.Random) -> None:
    """Weights of any size that take no space."""
    path = folder / "model.safetensors"
    if path.is_file():
        os.truncate(path, source.choice((1 << 32, 1 << 36, 1 << 40)))
        _edit(folder, lambda d: d["weights"].update(bytes=path.stat().st_size))


def numbers_of_weights(folder: Path, source: random.Random) -> None:
    """Some weights become NaN, infinite or huge; the digest is right."""

    def change(header: dict[str, Any], data: bytearray) -> None:
        special = struct.pack("<f", source.choice((float("nan"), float("inf"), -float("inf"))))
        place = source.randrange(len(data) // 4) * 4
        data[place : place + 4] = special

    _rewrite(folder, change)


def entry(folder: Path, source: random.Random) -> None:
    """One tensor of the header has another dtype, shape, place or name; the digest is right."""

    def change(header: dict[str, Any], data: bytearray) -> None:
        name = source.choice([key for key in header if key != "__metadata__"])
        way = source.randrange(7)
        if way == 0:
            header[name]["dtype"] = source.choice(["F64", "I32", "BOOL", "F16", "X", None, 3, []])
        elif way == 1:
            header[name]["shape"] = source.choice([[], [-1], [2**62, 4], [0], None, [1.5], "x"])
        elif way == 2:
            header[name]["shape"] = [*header[name]["shape"][::-1], 1]
        elif way == 3:
            header[name]["data_offsets"] = source.choice(
                [[0, 0], [-4, 4], [0, 2**63], [8, 4], None]
            )
        elif way == 4:
            header[name + "x"] = header.pop(name)
        elif way == 5:
            other = source.choice([key for key in header if key != "__metadata__"])
            header[name], header[other] = header[other], header[name]
        else:
            header[name] = source.choice([None, [], {}, "x", 1])

    _rewrite(folder, change)


def head(folder: Path, source: random.Random) -> None:
    """The length of the header is another; the digest is right."""
    path = folder / "model.safetensors"
    if not path.is_file() or path.stat().st_size > 1 << 30:
        return
    lie = source.choice((0, 1, 2**20, 2**32, 2**63, 2**64 - 1, source.randrange(5000)))
    path.write_bytes(lie.to_bytes(8, "little") + path.read_bytes()[8:])
    _sign(folder)


MUTATIONS: list[Callable[[Path, random.Random], None]] = [
    *(value, value, value, near, near, missing, unknown, raw, twice, letters, length, special),
    *(sparse, numbers_of_weights, entry, entry, head),
]


def _at_random(folder: Path, source: random.Random, change: Callable[[Any, Any], None]) -> None:
    """Apply `change` to a place of the description."""

    def descend(description: Any) -> None:
        parent = description
        while True:
            keys: list[Any] = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            key = source.choice(keys)
            child = parent[key]
            if not isinstance(child, (dict, list)) or not child or source.random() < 0.2:
                change(parent, key)
                return
            parent = child

    _edit(folder, descend)


def _edit(folder: Path, change: Callable[[Any], None]) -> None:
    path = folder / "model.json"
    try:
        description = json.loads(path.read_text()) if path.is_file() else None
    except (ValueError, RecursionError):
        return
    if isinstance(description, dict) and description:
        try:
            change(description)
            text = json.dumps(description)
        except (KeyError, TypeError, AttributeError, ValueError):
            return  # an earlier mutation left nothing to change there
        path.write_text(text, errors="surrogatepass")


def _rewrite(folder: Path, change: Callable[[dict[str, Any], bytearray], None]) -> None:
    """Change the header and the numbers of the weights, and sign the result."""
    path = folder / "model.safetensors"
    if not path.is_file() or path.stat().st_size > 1 << 30:
        return
    whole = path.read_bytes()
    count = int.from_bytes(whole[:8], "little")
    try:
        header, data = json.loads(whole[8 : 8 + count]), bytearray(whole[8 + count :])
        change(header, data)
        text = json.dumps(header).encode()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return  # an earlier mutation left no header
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    _sign(folder)


def _sign(folder: Path) -> None:
    """Make size and digest right again."""
    data = (folder / "model.safetensors").read_bytes()
    about = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    _edit(folder, lambda description: description.update(weights=about))


ATTACKS = (
    Attack(
        "checkpoints",
        "A damaged checkpoint is refused as a CheckpointError, within 600 MiB and 20 s",
        attack,
        count=1500,
        bounded=15,
    ),
)
