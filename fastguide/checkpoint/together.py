"""Weights and their description, replaced together or not at all.

The weights are written beside the old ones under a name that tells their digest; then the
description, which names that digest, takes the place of the old one: from this moment on the new
model is the one that is read. Then the weights get their usual name. A reader looks for the name
with the digest first, so at every moment it finds the weights of the description it has read.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastguide.common.files import write_atomic

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"


def weights_paths(folder: Path, sha256: str) -> tuple[Path, Path]:
    """Where the weights of that digest may lie: while they are being replaced, and usually."""
    return folder / f"model.{sha256[:16]}.safetensors", folder / WEIGHTS


def replace_together(folder: Path, weights: bytes, sha256: str, description: bytes) -> None:
    """Write both; one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        meanwhile, usual = weights_paths(folder, sha256)
        _remove_others(folder, keep=_current(folder))
        try:
            write_atomic(meanwhile, weights)
            write_atomic(folder / DESCRIPTION, description)
        except BaseException:
            _remove_others(folder, keep=_current(folder))
            raise
        os.replace(meanwhile, usual)
        _remove_others(folder, keep=b"")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _current(folder: Path) -> bytes:
    """The description that is there."""
    try:
        return (folder / DESCRIPTION).read_bytes()
    except OSError:
        return b""


def _remove_others(folder: Path, keep: bytes) -> None:
    """Remove weights that wait for their name, but those whose digest the description names."""
    for path in folder.glob("model.*.safetensors"):
        found = re.fullmatch(r"model\.([0-9a-f]{16})\.safetensors", path.name)
        if found and found[1].encode() not in keep:
            path.unlink(missing_ok=True)
