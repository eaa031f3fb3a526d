"""Files that are whole or absent."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    It is written under a temporary name first, and locked meanwhile. Temporary files of `path` that
    nobody holds, because their writer was killed, are removed.
    """
    make_folder(path.parent)
    remove_leftovers(path)
    try:
        _write(path, data)
    except OSError as error:  # which names the temporary file, or none
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


def _write(path: Path, data: bytes) -> None:
    temporary, file = _open_temporary(path)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder that can be written to, unless there is one.

    Raises:
        OSError: a file is in the way, or it may not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{folder} is not a folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} may not be written to")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` whose writers are gone."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # gone meanwhile, or not ours
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                leftover.unlink(missing_ok=True)
        except OSError:  # held, or a file system without locks
            continue
        finally:
            os.close(descriptor)


def _open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked until it is closed where the file system has locks."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115 (it is returned)
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another writer is about to take it for a leftover
            file.close()
            continue
        except OSError:
            return temporary, file
        if os.fstat(file.fileno()).st_nlink:  # else another writer took it for a leftover
            return temporary, file
        file.close()


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
