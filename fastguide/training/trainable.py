"""What training asks of a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn


class Trainable(Protocol):
    """A module of `fastguide.nets` that the training loop can teach.

    Args:
        config: its arguments, from which it is made again when it is loaded.
    """

    config: dict[str, Any]

    def initialise(self) -> None:
        """Draw new weights from torch's default generator."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless it can take images of `shape` = (C, H, W)."""

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Any: ...

    # of nn.Module
    def train(self, mode: bool = True) -> Any: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class Denoiser(Trainable, Protocol):
    """A network that `train` can teach to predict.

    Args:
        classes: number of classes; 0 is unconditional.
        heads, negative, split: as `DiT` has them.
        variance: whether a second C channels say the variance.
    """

    classes: int
    heads: int
    negative: bool
    split: bool
    variance: bool

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor: ...
