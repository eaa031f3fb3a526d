"""Linear measurements of images as orthogonal projections, for what is known of a sample: what a
grey or a small image says of a coloured or a large one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


def grey(images: Tensor) -> Tensor:
    """The mean of the channels, in each: what colourisation leaves as it is (Song et al. 2021,
    appendix I.3, whose first decoupled channel it is).
    """
    return images.mean(1, keepdim=True).expand_as(images)


@dataclass(frozen=True)
class pooled:
    """The mean of each block of `factor` x `factor` pixels, in each: what super-resolution leaves
    as it is (consistency models, Song et al. 2023, algorithm 4).
    """

    factor: int

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, int) or self.factor < 1:
            raise ValueError(f"factor is {self.factor!r}, but it should be an integer, 1 or more")

    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ValueError(
                f"images are {tuple(images.shape)}, but pooled({self.factor}) needs (B, C, H, W), "
                f"H and W multiples of {self.factor}"
            )
        means = F.avg_pool2d(images, self.factor)
        return means.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
