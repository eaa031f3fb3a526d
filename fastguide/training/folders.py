"""Folders of images, one subfolder a class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastguide.training.sizes import check_pixels, check_total

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def read_folders(folder: Path) -> tuple[np.ndarray, list[int], tuple[str, ...]]:
    """Pixels uint8 [N, C, H, W], labels, and the names of the subfolders that hold images.

    Hidden files and folders, what is no regular file, and links that lead out of `folder` are left
    out; a warning tells of the links.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: an image is damaged, too large, of a depth that is not read, or differs from the
            others in size or mode.
    """
    try:
        groups = [(path.name, list(_files(path, folder))) for path in _folders(folder)]
    except OSError as error:
        raise ValueError(f"data in {folder} cannot be listed: {error}") from error
    groups = [(name, files) for name, files in groups if files]
    found = [(path, index) for index, (_, files) in enumerate(groups) for path in files]
    if not found:
        raise FileNotFoundError(
            f"data is {str(folder)!r}, but it holds neither train-images-idx3-ubyte[.gz] "
            "nor subfolders with images"
        )
    first = read_image(found[0][0])
    check_total(folder, len(found) * first.nbytes, sum(path.stat().st_size for path, _ in found))
    pixels = np.empty((len(found), *first.shape), np.uint8)
    for i, (path, _) in enumerate(found):
        array = read_image(path, like=(first.shape, found[0][0]))
        pixels[i] = array
    return pixels, [index for _, index in found], tuple(name for name, _ in groups)


def read_image(path: Path, like: tuple[tuple[int, ...], Path] | None = None) -> np.ndarray:
    """One image as uint8 [C, H, W], C of 1 or 3; 16-bit ones rounded to 8.

    Args:
        like: the shape it should have, and the image that has it; it is compared before anything
            is decoded.

    Raises:
        ValueError: see `read_folders`.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            check_pixels(path, width, height)
            if like is not None and like[0][1:] != (height, width):
                shape = (_channels(image), height, width)
                raise ValueError(f"{path} is {shape} as (C, H, W), but {like[1]} is {like[0]}")
            array = _to_bytes(image)
    except Exception as error:  # whatever a decoder raises for a damaged file
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} is damaged: {error}") from error
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if like is not None and array.shape != like[0]:
        raise ValueError(f"{path} is {array.shape} as (C, H, W), but {like[1]} is {like[0]}")
    return array


def _channels(image: Image) -> int:
    return 1 if image.mode in ("1", "L") or image.mode.startswith("I") else 3


def _to_bytes(image: Image) -> np.ndarray:
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode.startswith("I"):  # 16 bits, which some decoders widen to 32
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("its pixels have more than 16 bits; 8 or 16 are read")
        return ((wide + 128) // 257).astype(np.uint8)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; 8 or 16 bits are read")
    return np.asarray(image.convert("L" if image.mode == "1" else "RGB"))


def _folders(folder: Path) -> list[Path]:
    return [path for path in _inside(folder, folder) if path.is_dir()]


def _files(group: Path, folder: Path) -> Iterator[Path]:
    return (
        path
        for path in _inside(group, folder)
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def _inside(group: Path, folder: Path) -> list[Path]:
    """What `group` holds, by name: nothing hidden, and no link that leads out of `folder`."""
    root, kept, outside = folder.resolve(), [], []
    for path in sorted(group.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not _leads_into(path, root):
            outside.append(path)
        else:
            kept.append(path)
    if outside:
        warnings.warn(
            f"{outside[0]} leads out of {folder} and is not followed, nor are "
            f"{len(outside) - 1} other links of its folder",
            stacklevel=4,
        )
    return kept


def _leads_into(path: Path, root: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # it leads nowhere, or back to itself
        return False
