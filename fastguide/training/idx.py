"""IDX files, MNIST's format: unsigned bytes of any shape, plain or compressed.

Sizes are known before anything is read: from the file's length, or from the header, which a
compressed file is read up to first.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastguide.training.sizes import check_total


def read_idx(path: Path) -> np.ndarray:
    """Read one file: magic 0x00 0x00 0x08 rank, big-endian sizes, data.

    Raises:
        ValueError: it is damaged, or would take far more memory than disk.
    """
    try:
        with open(path, "rb") as plain:
            length = path.stat().st_size
            if path.suffix != ".gz":
                return _read(plain, path, length, length)
            with gzip.open(plain) as file:
                return _read(file, path, None, length)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _read(file: BinaryIO, path: Path, length: int | None, stored: int) -> np.ndarray:
    """The array; `length` is the number of bytes that `file` gives, where it is known."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 8:
        raise ValueError(f"{path} is not an IDX file of bytes: it starts with {magic!r}")
    sizes_read = file.read(4 * magic[3])
    sizes = tuple(int.from_bytes(sizes_read[i : i + 4], "big") for i in range(0, 4 * magic[3], 4))
    count = math.prod(sizes)
    header = 4 + 4 * magic[3]
    if length is not None and length != header + count:
        raise ValueError(f"{path} is damaged: {length} bytes for an array of {sizes}")
    check_total(path, count, stored)
    data = file.read(count + 1)
    if len(data) != count or len(sizes_read) != 4 * magic[3]:
        more = "more than " if len(data) > count else ""
        raise ValueError(
            f"{path} is damaged: {more}{header + min(len(data), count)} bytes for an array of "
            f"{sizes}"
        )
    return np.frombuffer(data, np.uint8).reshape(sizes)
