"""Pictures of results: matplotlib without a screen, written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fastguide.common.files import write_atomic


def panels(count: int, size: tuple[float, float], rows: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of `size` inches and its panels: `count` side by side, in `rows` rows one after the
    other.
    """
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(rows, count, squeeze=False).flat)


def log_axis(axis: Any) -> None:
    """Values on a logarithmic scale, written as they are."""
    axis.set_yscale("log")
    for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        ticks("{x:.3g}")


def write_png(figure: Figure, path: Path, dpi: int) -> None:
    """Write `figure` to `path`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    write_atomic(path, buffer.getvalue())
