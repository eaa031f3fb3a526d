"""How an image's tokens lie: worked out from the shape of what they were made of."""

from __future__ import annotations

from collections.abc import Sequence

PATCHES = (1, 2, 4, 8, 16, 32, 64)  # of height and width, or of the only axis
STRIDES = (1, 2, 4, 8)  # of frames


def grid_of(tokens: int, sample: Sequence[int]) -> tuple[int, ...]:
    """The grid of `tokens` tokens of a sample `(C, L)`, `(C, H, W)` or `(C, T, H, W)`, row by row:
    `(l,)`, `(h, w)`, or `(t, h, w)` with t left out where it is 1.

    Sides are divided by one patch size and rounded up, as convolutions and patches do.

    Raises:
        ValueError: none fits, or more than one does.
    """
    *frames, height, width = (1, *sample[1:]) if len(sample) < 4 else sample[1:]
    if len(sample) < 2 or len(frames) > 1:
        raise ValueError(f"a sample of shape {tuple(sample)} has no grid of tokens")
    found = set()
    for patch in PATCHES:
        plane = (-(-height // patch), -(-width // patch))
        for stride in STRIDES if frames else (1,):
            count = -(-frames[0] // stride) if frames else 1
            if count * plane[0] * plane[1] == tokens:
                found.add((count, *plane))
        if plane[0] * plane[1] == tokens:  # of one frame at a time
            found.add((1, *plane))
    if len(found) != 1:
        raise ValueError(
            f"{tokens} tokens of a sample of shape {tuple(sample)} fit {len(found)} grids, and it "
            "should be one: tell fastguide.staging.Modules which it is, by `grid`"
        )
    first = found.pop()
    if len(sample) == 2:
        return first[-1:]
    return first[1:] if first[0] == 1 else first
