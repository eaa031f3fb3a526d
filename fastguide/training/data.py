"""Training images from IDX files (MNIST's format) or from a folder of images, one subfolder a
class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastguide.training.folders import read_folders
from fastguide.training.idx import read_idx


@dataclass(frozen=True)
class Images:
    """`pixels` uint8 [N, C, H, W], `labels` int64 [N], one name per class."""

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def digest(self) -> str:
        """SHA-256 of all three."""
        digest = hashlib.sha256(repr((tuple(self.pixels.shape), self.class_names)).encode())
        for tensor in (self.pixels, self.labels):
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_images(folder: str | Path, split: str = "train", names: Sequence[str] = ()) -> Images:
    """Read all images of `folder`.

    IDX: `{split}-images-idx3-ubyte` and `{split}-labels-idx1-ubyte`, each plain or `.gz` (the test
    split of MNIST and its kin is called "t10k"); classes are called by `names`, or by their number.
    Otherwise: one subfolder per class with image files of one size and mode, of 8 or 16 bits. What
    is hidden, no regular file, or a link that leads out of `folder` is left out.

    Raises:
        FileNotFoundError: there is neither.
        ValueError: a file is damaged or would take far more memory than disk, or the images differ
            in size or mode; the message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data is {str(folder)!r}, but there is no such folder")
    for suffix in ("", ".gz"):
        images = folder / f"{split}-images-idx3-ubyte{suffix}"
        if images.is_file():
            labels = folder / f"{split}-labels-idx1-ubyte{suffix}"
            return _from_idx(images, labels, tuple(names))
    pixels, indices, found = read_folders(folder)
    return Images(torch.from_numpy(pixels), torch.tensor(indices), found)


def _from_idx(images: Path, labels: Path, names: tuple[str, ...]) -> Images:
    if not labels.is_file():
        raise FileNotFoundError(f"{images} has no labels beside it: {labels} is missing")
    classes, pixels = read_idx(labels), read_idx(images)
    if pixels.ndim != 3 or classes.shape != pixels.shape[:1]:
        raise ValueError(f"{images} holds {pixels.shape}, but {labels} holds {classes.shape}")
    if not pixels.size:
        raise ValueError(f"{images} holds {pixels.shape}, but there should be one image or more")
    count = int(classes.max()) + 1
    if names and len(names) < count:
        raise ValueError(f"names has {len(names)} entries, but {labels} has {count} classes")
    return Images(
        torch.from_numpy(pixels.copy()).unsqueeze(1),
        torch.from_numpy(classes.astype(np.int64)),
        names or tuple(str(i) for i in range(count)),
    )
