"""Images in [-1, 1] to pixels, to PNG files and to captioned grids."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastguide.common.files import write_atomic

if TYPE_CHECKING:
    from PIL import Image  # read where an image is made: importing it takes a while


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8, clipped."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 to fp32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def to_pil(image: Tensor) -> Image.Image:
    """One image `[C, H, W]` in [-1, 1], C of 1 or 3."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image.shape is {tuple(image.shape)}, but it should be (1 or 3, H, W)")
    from PIL import Image

    pixels = to_uint8(image).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def grid(
    images: Tensor, columns: int, captions: Sequence[str] = (), zoom: int = 1, gap: int = 2
) -> Image.Image:
    """`[N, C, H, W]` in rows of `columns`, each enlarged `zoom` times above its caption, if any."""
    from PIL import Image, ImageDraw, ImageFont

    if columns < 1 or zoom < 1:
        raise ValueError(f"columns, zoom are {columns}, {zoom}, but they should be 1 or more")
    if captions and len(captions) != len(images):
        raise ValueError(f"captions has {len(captions)} entries for {len(images)} images")
    height, width = images.shape[-2] * zoom, images.shape[-1] * zoom
    line = 14 if captions else 0
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) + gap, rows * (height + line + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for i, image in enumerate(images):
        left = gap + i % columns * (width + gap)
        top = gap + i // columns * (height + line + gap)
        enlarged = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left, top))
        if captions:
            pen.text((left + width // 2, top + height + 1), captions[i], "black", font, anchor="ma")
    return sheet


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG under a temporary name, then rename it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG, JPEG or WebP (without loss), as the path ends, under a temporary name first."""
    formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    kind = formats.get(path.suffix.lower(), "PNG")
    options: dict[str, dict[str, int]] = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": 1},
    }
    buffer = io.BytesIO()
    image.save(buffer, kind, **options.get(kind, {}))
    write_atomic(path, buffer.getvalue())
