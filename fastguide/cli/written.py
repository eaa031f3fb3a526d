"""Where samples go: one grid, one archive, or a folder of files that is written as the run goes and
goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
ARCHIVE, MANIFEST = ".npz", "samples.json"


def check_out(out: Path) -> str:
    """Its ending, "" for a folder; what it needs is there before any work.

    Raises:
        OSError: something is in the way, or it may not be written to.
        ValueError: another ending of a file.
    """
    from fastguide.common.files import make_folder

    ending = out.suffix.lower()
    known = (*PICTURES, ARCHIVE)
    if ending and ending not in known and not out.is_dir():
        raise ValueError(
            f"out is {str(out)!r}, but it should end with {', '.join(known)}, or be a folder"
        )
    ending = ending if ending in known else ""
    make_folder(out.parent if ending else out)
    if ending and out.is_dir():
        raise IsADirectoryError(f"out is {out}, but that is a folder")
    return ending


class Folder:
    """A folder with a file for each seed, and a manifest of the settings that they were made with.

    Args:
        settings: whatever an image depends on, as JSON.
        ending: of the files.

    Raises:
        ValueError: there are images of other settings, or without a manifest.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], ending: str) -> None:
        from fastguide.common.files import write_atomic

        self.folder, self.ending = folder, ending
        text = json.dumps(settings, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        path = folder / MANIFEST
        if path.is_file():
            _check_same(path, settings, digest)
        elif any(one.suffix.lower() in PICTURES for one in folder.iterdir()):
            raise ValueError(
                f"out is {folder}, which has images, but no {MANIFEST} that says how they were "
                "made; choose another folder"
            )
        else:
            data = {"digest": digest, "settings": dict(settings)}
            write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())

    def lacks(self, seed: int) -> bool:
        """Whether the image of a seed is still to be made."""
        return not self._path(seed).is_file()

    def write(self, seeds: Sequence[int], images: Tensor) -> None:
        """Each image under its seed's name, whole or not at all."""
        from fastguide.common.images import save_image, to_pil

        for seed, image in zip(seeds, images, strict=True):
            save_image(to_pil(image), self._path(seed))

    def _path(self, seed: int) -> Path:
        return self.folder / f"{seed:06d}{self.ending}"


def write_archive(
    path: Path, images: Tensor, seeds: Sequence[int], labels: Sequence[int] | None
) -> None:
    """`arr_0` uint8 [N, H, W, C], as ADM's evaluation reads it, `seeds`, and `labels` if any."""
    import io

    import numpy as np

    from fastguide.common.files import write_atomic
    from fastguide.common.images import to_uint8

    arrays = {"arr_0": to_uint8(images).movedim(1, -1).numpy(), "seeds": np.array(seeds)}
    if labels is not None:
        arrays["labels"] = np.array(labels)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def _check_same(path: Path, settings: Mapping[str, Any], digest: str) -> None:
    try:
        before = json.loads(path.read_text())
        same = before["digest"] == digest
        old = dict(before["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged; choose another folder as out") from error
    if not same:
        other = [name for name in {**old, **settings} if old.get(name) != settings.get(name)]
        named = ", ".join(f"{name} {old.get(name)!r}" for name in other[:3])
        raise ValueError(
            f"out is {path.parent}, which has images of other settings ({named or 'damaged'}); "
            "choose another folder"
        )
