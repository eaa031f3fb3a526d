"""Judges of clean images made of any torch module, and of OpenCLIP's models, for guidance by their
gradient: `ClassifierGuidance`, `CLIPGuidance` and `EnergyGuidance` call `judge(x, t)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastguide.common.checks import check_int, shown


@dataclass(frozen=True, eq=False)
class CleanJudge:
    """`judge(x, t)`: what `module` says of clean images x in [-1, 1], whatever t is.

    The images are brought to what the module was made for, as its own preparation does: one channel
    to as many as `mean` has, `(x + 1) / 2`, the shorter side to `size` (bicubic, antialiased) and
    the middle cut out, `(x - mean) / std`. All of it has a gradient; the module must have one too.
    With images of one's own kind, any function `judge(x, t)` will do in its place.

    Args:
        module: `module(images [B, C, size, size]) -> [B, ...]`: logits for `ClassifierGuidance`,
            embeddings `[B, D]` for `CLIPGuidance`, energies `[B]` for `EnergyGuidance`.
        size: of the images; None leaves theirs.
        mean, std: of each channel of images in [0, 1].
    """

    module: Callable[[Tensor], Tensor]
    size: int | None = None
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not callable(self.module):
            raise TypeError(f"module is {shown(self.module)}, but it should be callable")
        if self.size is not None:
            check_int("size", self.size)
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0.0:
            raise ValueError(
                f"mean, std are {self.mean}, {self.std}, but they should be one number a channel, "
                "those of std positive"
            )

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Images `[B, C, H, W]` in [-1, 1], of 1 channel or as many as the module takes."""
        channels = len(self.mean)
        if x.ndim != 4 or x.shape[1] not in (1, channels):
            raise ValueError(
                f"x is {tuple(x.shape)}, but the judge takes images (B, 1 or {channels}, H, W)"
            )
        images = (0.5 * (x + 1.0)).expand(-1, channels, -1, -1)
        if self.size is not None:
            images = _fitted(images, self.size)
        mean, std = (x.new_tensor(list(one)).view(1, -1, 1, 1) for one in (self.mean, self.std))
        return self.module((images - mean) / std)


def _fitted(images: Tensor, size: int) -> Tensor:
    """The middle square of images whose shorter side is made `size`."""
    height, width = images.shape[-2:]
    short = min(height, width)
    if short != size:
        sides = (round(height * size / short), round(width * size / short))
        images = F.interpolate(images, sides, mode="bicubic", antialias=True)
    top, left = ((side - size) // 2 for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


@dataclass(frozen=True, eq=False)
class OpenCLIP:
    """A model of OpenCLIP as the encoders of `CLIPGuidance`, of clean images:

        model, _, _ = open_clip.create_model_and_transforms("ViT-B-32", "laion2b_s34b_b79k")
        pair = OpenCLIP(model, open_clip.get_tokenizer("ViT-B-32"))
        CLIPGuidance(pair.image, pair.text(["a dog"])[0], 3.0, pair.logit_scale, of="denoised")

    Args:
        model: has `encode_image`, `encode_text`, `logit_scale`, and `visual` with `image_size`,
            `image_mean` and `image_std`.
        tokenizer: `tokenizer(texts) -> int64 [N, length]`.
    """

    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    image: CleanJudge = field(init=False)

    def __post_init__(self) -> None:
        visual = getattr(self.model, "visual", None)
        wanted = ((self.model, ("encode_image", "encode_text", "logit_scale")),)
        for owner, names in (*wanted, (visual, ("image_size", "image_mean", "image_std"))):
            lacking = [name for name in names if getattr(owner, name, None) is None]
            if lacking:
                raise TypeError(
                    f"model is a {type(self.model).__name__} without {', '.join(lacking)}, but it "
                    "should be a model of open_clip.create_model_and_transforms"
                )
        assert visual is not None
        size = visual.image_size
        size = size[0] if isinstance(size, (tuple, list)) else size
        judge = CleanJudge(self.model.encode_image, int(size), visual.image_mean, visual.image_std)
        object.__setattr__(self, "image", judge)

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Tensor:
        """The embeddings `[N, D]` of texts, where the model is."""
        tokens = self.tokenizer(list(texts)).to(self.model.logit_scale.device)
        return self.model.encode_text(tokens).float()

    @property
    def logit_scale(self) -> float:
        """The model's own factor of similarities."""
        return float(self.model.logit_scale.detach().exp())
