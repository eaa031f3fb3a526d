"""The file of weights: its header is compared with the network before the numbers are read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from fastguide.checkpoint.description import Description, parse_json
from fastguide.checkpoint.errors import CheckpointError
from fastguide.checkpoint.regular import open_regular, read_exactly

BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_MOST_HEADER = 16 << 20


@dataclass(frozen=True)
class Weights:
    """An open file whose header has been read.

    Args:
        entries: what the header says of each tensor.
        head: the bytes up to the numbers, of which there are `left`.
    """

    path: Path
    sha256: str
    file: BinaryIO
    entries: Mapping[str, Any]
    head: bytes
    left: int

    def read(self, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, which have the names and shapes of `wanted` and are finite.

        Raises:
            CheckpointError: they have not.
        """
        self._check_fit(wanted)
        data = self.head + read_exactly(self.file, self.left, self.path)
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise CheckpointError(
                f"{self.path} is damaged: its SHA-256 is not the one in model.json"
            )
        try:
            tensors = tensors_from_bytes(data)
        except SafetensorError as error:
            raise CheckpointError(f"{self.path} is damaged: {error}") from error
        check_finite(self.path, tensors)
        return tensors

    def _check_fit(self, wanted: Mapping[str, Tensor]) -> None:
        check_names(self.path, self.entries, wanted)
        total = 0
        for name, value in wanted.items():
            entry = self.entries[name]
            kind = entry.get("dtype") if isinstance(entry, dict) else None
            if not isinstance(kind, str) or kind not in BYTES:
                raise CheckpointError(
                    f"{self.path}: {name} is of dtype {ascii(kind)[:80]}, "
                    f"but it should be one of {[*BYTES]}"
                )
            shape = list(value.shape)
            if entry.get("shape") != shape:
                raise CheckpointError(
                    f"{self.path}: the weights do not fit the network: {name} has shape "
                    f"{ascii(entry.get('shape'))[:80]}, but it should be {shape}"
                )
            total += BYTES[kind] * math.prod(shape)
        if total != self.left:
            raise CheckpointError(
                f"{self.path} is damaged: {self.left} bytes of weights, not {total}"
            )


@contextmanager
def open_weights(path: Path, about: Description) -> Iterator[Weights]:
    """Open the file that `about` tells of and read its header.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is of another size, or its header is damaged.
    """
    with open_regular(path) as (file, size):
        if size != about.bytes:
            raise CheckpointError(
                f"{path} is truncated or of another run: {size} bytes, not {about.bytes}"
            )
        first = read_exactly(file, min(8, size), path)
        length = int.from_bytes(first, "little")
        if length > min(_MOST_HEADER, size - len(first)):
            raise CheckpointError(f"{path} is damaged: its header would have {length} bytes")
        header = read_exactly(file, length, path)
        try:
            entries = parse_json(header)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: its header is no JSON: {error}") from error
        if not isinstance(entries, dict):
            raise CheckpointError(f"{path} is damaged: its header is no object")
        entries.pop("__metadata__", None)
        head = first + header
        yield Weights(path, about.sha256, file, entries, head, size - len(head))


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a weight is NaN or infinite."""
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{path}: {name} has values that are not finite")


def check_names(path: Path, found: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise CheckpointError unless both are the same names."""
    found, wanted = set(found), set(wanted)
    for what, names in (("lacks", wanted - found), ("has", found - wanted)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{path}: the weights do not fit the network: the file {what} "
                f"{min(names)[:80]!r}{more}"
            )
