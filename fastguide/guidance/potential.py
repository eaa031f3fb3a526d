"""What guides by a gradient: a scalar per sample that is to become large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Of = Literal["x", "denoised"]


@dataclass(frozen=True)
class Potential:
    """`value(x, t, target) -> [B]`, whose gradient leads; `key` tells potentials apart.

    Args:
        name: of the argument that holds the function, for errors.
        of: what it is a function of: the network's input "x", or the "denoised" image.
        targets: whether it is given the call's condition.
        mean: whether the gradient moves the mean of the update's noise, not the prediction.
    """

    key: int
    value: Callable[[Tensor, Tensor, Any], Tensor] = field(compare=False)
    name: str = field(compare=False)
    of: Of = "x"
    targets: bool = False
    mean: bool = False
