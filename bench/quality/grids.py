"""The pictures of docs/methods: unguided above, guided below, the same seeds, on the bundled model.

make grids    # docs/images/<method>.png
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from results import IMAGES

import fastguide as fg
from fastguide.common.images import to_pixels

COLUMNS, ZOOM, STEPS = 14, 2, 25
GRIDS: dict[str, fg.Guidance] = {
    "pag": fg.PAG(1.0),
    "seg": fg.SEG(1.0),
    "sag": fg.SAG(0.5),
    "slg": fg.SLG(0.5),
    "tpg": fg.TPG(0.5, layers=[1, 2]),
    "nag": fg.NAG(3.0),
}


def grid(model: fg.Model, guidance: fg.Guidance, path: Path) -> None:
    """Two rows of `COLUMNS` samples."""
    labels = torch.arange(COLUMNS) % len(model.class_names)
    rows = [
        to_pixels(fg.sample(model, labels, one, steps=STEPS, seeds=range(COLUMNS)))
        for one in (None, guidance)
    ]
    pixels = torch.cat([torch.cat(list(row[:, 0]), 1) for row in rows])
    image = Image.fromarray(pixels.numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * ZOOM, image.height * ZOOM), Image.Resampling.NEAREST).save(path)


def main() -> None:
    """All of them."""
    model = fg.load("fashion")
    for name, guidance in GRIDS.items():
        grid(model, guidance, IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
