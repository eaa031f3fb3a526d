"""How much memory data may take, judged before it is decoded."""

from __future__ import annotations

from pathlib import Path

SMALL = 256 << 20  # bytes that are always allowed
RATIO = 200  # beyond, so many times what is on disk: photographs shrink 10 times, drawings 50
MOST_PIXELS = 1 << 24  # of one image: 4096 x 4096


def check_total(path: Path, decoded: int, stored: int) -> None:
    """Raise ValueError where `stored` bytes on disk would become so many that they were made to."""
    if decoded > max(SMALL, RATIO * stored):
        raise ValueError(
            f"{path} would take {decoded} bytes of memory for {stored} on disk, more than {RATIO} "
            "times as many"
        )


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise ValueError where one image has more pixels than a network is trained on."""
    if width < 1 or height < 1 or width * height > MOST_PIXELS:
        raise ValueError(
            f"{path} has {width} x {height} pixels, but 1 to {MOST_PIXELS} are supported"
        )
