"""Training images from IDX files (MNIST's format) or from a folder of images, one subfolder a
class.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Images:
    """`pixels` uint8 [N, C, H, W], `labels` int64 [N], one name per class."""

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def load_images(folder: str | Path, split: str = "train", names: Sequence[str] = ()) -> Images:
    """Read all images of `folder`.

    IDX: `{split}-images-idx3-ubyte` and `{split}-labels-idx1-ubyte`, each plain or `.gz` (the test
    split of MNIST and its kin is called "t10k"); classes are called by `names`, or by their number.
    Otherwise: one subfolder per class with image files of one size and mode.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a file is damaged, or the images differ in size or mode.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data is {str(folder)!r}, but there is no such folder")
    for suffix in ("", ".gz"):
        images = folder / f"{split}-images-idx3-ubyte{suffix}"
        if images.is_file():
            labels = folder / f"{split}-labels-idx1-ubyte{suffix}"
            return _from_idx(images, labels, tuple(names))
    return _from_folders(folder)


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes: magic 0x00 0x00 0x08 rank, big-endian sizes, data."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of bytes: it starts with {raw[:4]!r}")
    rank = raw[3]
    header = 4 + 4 * rank
    sizes = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank))
    if len(raw) != header + math.prod(sizes):
        raise ValueError(f"{path} is damaged: {len(raw)} bytes for an array of {sizes}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(sizes)


def _from_idx(images: Path, labels: Path, names: tuple[str, ...]) -> Images:
    if not labels.is_file():
        raise FileNotFoundError(f"{images} has no labels beside it: {labels} is missing")
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.shape != pixels.shape[:1]:
        raise ValueError(f"{images} holds {pixels.shape}, but {labels} holds {classes.shape}")
    count = int(classes.max()) + 1
    if names and len(names) < count:
        raise ValueError(f"names has {len(names)} entries, but {labels} has {count} classes")
    return Images(
        torch.from_numpy(pixels.copy()).unsqueeze(1),
        torch.from_numpy(classes.astype(np.int64)),
        names or tuple(str(i) for i in range(count)),
    )


def _from_folders(folder: Path) -> Images:
    from PIL import Image

    groups = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [
        (path, index)
        for index, group in enumerate(groups)
        for path in sorted(group.iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise FileNotFoundError(
            f"data is {str(folder)!r}, but it holds neither train-images-idx3-ubyte[.gz] "
            "nor subfolders with images"
        )
    arrays: list[np.ndarray] = []
    for path, _ in found:
        with Image.open(path) as image:
            array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if arrays and array.shape != arrays[0].shape:
            raise ValueError(
                f"{path} is {array.shape} as (C, H, W), but {found[0][0]} is {arrays[0].shape}"
            )
        arrays.append(array)
    labels = torch.tensor([index for _, index in found])
    return Images(torch.from_numpy(np.stack(arrays)), labels, tuple(g.name for g in groups))
