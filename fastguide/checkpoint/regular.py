"""Regular files, whose size is known before they are read: no FIFO, no device, nothing endless."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastguide.checkpoint.errors import CheckpointError


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is no regular file, or more than half of it are holes, or it cannot be
            read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a regular file")
    with open(descriptor, "rb", buffering=0) as file:
        _check_holes(path, descriptor, about.st_size)
        try:
            yield file, about.st_size
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_exactly(file: BinaryIO, count: int, path: Path) -> bytes:
    """The next `count` bytes.

    Raises:
        CheckpointError: there are fewer.
    """
    parts, missing = [], count
    while missing:
        part = file.read(min(missing, 1 << 30))
        if not part:
            raise CheckpointError(f"{path} is truncated: {missing} of {count} bytes are missing")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_holes(path: Path, descriptor: int, size: int) -> None:
    """A sparse file may be of any size and takes no space: what is read of it is zeros."""
    if not hasattr(os, "SEEK_DATA") or size < 1 << 20:
        return
    data, at = 0, 0
    for _ in range(10_000):  # extents; a file of more is no empty one
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError:  # no data after `at`, or a file system that does not say
            break
        data += at - start
        if at >= size:
            break
    else:
        data = size
    os.lseek(descriptor, 0, os.SEEK_SET)
    if 2 * data < size:
        raise CheckpointError(f"{path} is sparse: {size - data} of its {size} bytes are holes")
