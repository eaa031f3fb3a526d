"""Damaged data folders: images, IDX files and folders of every wrong kind, read under limits."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from attack import Attack, Broken, draw
from attack_kills import write_images
from nursery import Limits, Nursery
from PIL import Image

LIMITS = Limits(seconds=20.0, memory=600 << 20)
FORMATS = ("png", "jpg", "bmp", "tif", "webp", "gif")


def write_folders(folder: Path) -> None:
    """Three classes of four images of several formats."""
    for label, name in enumerate(("cat", "dog", "owl")):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            image = Image.new("RGB", (6, 5), (40 * label, 60 * i, 200))
            image.save(folder / name / f"{i}.{FORMATS[(label + i) % len(FORMATS)]}")


def attack(seed: int, numbers: range) -> Counter[str]:
    """Each number is one folder with one, two or three mutations."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place, Nursery("victim") as nursery:
        base = Path(place)
        write_images(base / "idx")
        for path in sorted((base / "idx").iterdir())[:1]:
            (base / "idx" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        write_folders(base / "folders")
        secret = base / "secret"
        secret.mkdir()
        Image.new("RGB", (6, 5), (255, 0, 0)).save(secret / "9.png")
        for number, source in draw(seed, numbers):
            folder = base / str(number)
            shutil.copytree(base / source.choice(("idx", "folders")), folder)
            done = [source.choice(MUTATIONS) for _ in range(source.choice((1, 1, 2, 3)))]
            for mutate in done:
                mutate(folder, source)
            names = " and ".join(mutate.__name__ for mutate in done)
            found = nursery.call("read_data", [str(folder)], LIMITS)
            told = "ValueError" in found.error or "FileNotFoundError" in found.error
            if found.signal or (found.error and not told):
                raise Broken(f"folder {number} with {names}: {found}")
            if found.error and str(folder) not in found.message:
                raise Broken(f"folder {number} with {names} names no file: {found}")
            if found.memory > LIMITS.memory:
                raise Broken(f"folder {number} with {names} held {found.memory} bytes")
            outcomes["an error that names the file" if found.error else "read all the same"] += 1
            shutil.rmtree(folder)
    return outcomes


def one_of(folder: Path, source: random.Random) -> Path:
    """One of the files below `folder`."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return source.choice(found) if found else folder / "nothing"


def letters(folder: Path, source: random.Random) -> None:
    """Some bytes of a file change."""
    path = one_of(folder, source)
    if path.is_file() and path.stat().st_size < 1 << 20:
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


def head(folder: Path, source: random.Random) -> None:
    """One of the first bytes, where sizes are told, becomes another."""
    path = one_of(folder, source)
    if path.is_file() and path.stat().st_size > 40:
        with open(path, "r+b") as file:
            file.seek(source.randrange(40))
            file.write(bytes([source.choice((0, 1, 127, 128, 255))]) * source.choice((1, 1, 3)))


def length(folder: Path, source: random.Random) -> None:
    """A file is cut, or goes on."""
    path = one_of(folder, source)
    if path.is_file():
        size = path.stat().st_size
        os.truncate(path, source.choice((0, 1, size // 2, max(0, size - 1), size + 1, 1 << 34)))


def special(folder: Path, source: random.Random) -> None:
    """A file is no file."""
    path = one_of(folder, source)
    if not path.is_file():
        return
    path.unlink()
    way = source.randrange(6)
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        path.mkdir()
    else:
        targets = (path.name, "/dev/zero", "nowhere", str(folder.parent / "secret" / "9.png"))
        path.symlink_to(targets[way - 2])


def air(folder: Path, source: random.Random) -> None:
    """A file of few bytes that stands for many."""
    path = one_of(folder, source)
    side = source.choice((2000, 5000, 40_000))
    if path.suffix == ".gz" or "idx" in path.name:
        data = bytes([0, 0, 8, 3]) + struct.pack(">III", side, side, 28)
        path.unlink(missing_ok=True)
        name = path.name.removesuffix(".gz") + ".gz"
        (folder / name).write_bytes(gzip.compress(data + bytes(1 << 22)))
        return

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = zlib.compress(bytes(1 << 20), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    path.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def other(folder: Path, source: random.Random) -> None:
    """A file of another size, mode or kind lies among them."""
    path = one_of(folder, source)
    mode = source.choice(("L", "RGBA", "P", "1", "I;16", "F", "CMYK", "RGB"))
    size = source.choice(((6, 5), (5, 6), (1, 1)))
    kind = "tif" if mode in ("F", "CMYK", "I;16") else "png"
    Image.new(mode, size).save(path.with_name(f"more.{kind}"))


def names(folder: Path, source: random.Random) -> None:
    """A file or a folder has a strange name."""
    name = source.choice((".hidden", "._0.png", "a\nb", "ü" * 60, "-", "%s", "x" * 200, "CON"))
    if source.random() < 0.5:
        shutil.copytree(one_of(folder, source).parent, folder / name, dirs_exist_ok=True)
    else:
        path = one_of(folder, source)
        if path.is_file():
            path.rename(path.with_name(name + path.suffix))


def gone(folder: Path, source: random.Random) -> None:
    """A file, or all of a class, is gone."""
    path = one_of(folder, source)
    if path.is_file():
        if source.random() < 0.5 and path.parent != folder:
            shutil.rmtree(path.parent)
        else:
            path.unlink()


def loop(folder: Path, source: random.Random) -> None:
    """A folder links to itself or out."""
    link = folder / f"more{len(list(folder.iterdir()))}"
    link.unlink(missing_ok=True)
    link.symlink_to(source.choice((str(folder), "..", link.name, "/", "../secret")))


MUTATIONS: list[Callable[[Path, random.Random], None]] = [
    *(letters, letters, letters, head, head, length, special, air, other, names, gone, loop),
]

ATTACKS = (
    Attack(
        "data",
        "A damaged data folder is read without what is damaged, or refused by an error that names "
        "the file, within 600 MiB and 20 s",
        attack,
        count=500,
        bounded=8,
    ),
)
