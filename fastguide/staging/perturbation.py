"""What may be done to a layer of a network in chosen rows: named by guidance, routed by the engine,
obeyed by the networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from fastguide.common.checks import check_int, check_name, check_number


@dataclass(frozen=True)
class Identity:
    """The self-attention map is the identity: `out = v` (PAG)."""


@dataclass(frozen=True)
class BlurredQueries:
    """The queries of self-attention are blurred on their grid, `sigma` in tokens, of all axes or of
    each; inf is the mean of an axis (SEG).
    """

    sigma: float | tuple[float, ...]

    def __post_init__(self) -> None:
        values = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        if not 1 <= len(values) <= 3:
            raise ValueError(f"sigma is {self.sigma}, but tokens lie on one to three axes")
        for value in values:
            if not (isinstance(value, float) and value == math.inf):
                check_number("sigma", value, 0.0)

    @property
    def flat(self) -> bool:
        """Whether all queries become one: their mean."""
        values = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        return all(value == math.inf for value in values)


@dataclass(frozen=True)
class Shuffled:
    """The layer's input tokens are permuted, anew for each sample and evaluation (TPG)."""


@dataclass(frozen=True)
class Skipped:
    """The layer is left out, residual connection and all: its output is its input (SLG, STG)."""


@dataclass(frozen=True)
class NoisyTime:
    """The layer's time embedding is perturbed: `embedding + strength t^power n` (TSG)."""

    strength: float
    power: float


Perturbation = Identity | BlurredQueries | Shuffled | Skipped | NoisyTime

Layers = tuple[str | int, ...]
LayerNames = str | int | Sequence[str | int]


class TimedLayers(tuple[str | int, ...]):
    """Layers whose time embedding is meant, as `Layers` otherwise: "all" are those that read it."""


def as_layers(layers: object) -> Layers:
    """`layers` as guidance takes it: a name, an index, "mid", "all", or a list of names and
    indices.
    """
    if isinstance(layers, (list, tuple, range)):
        if not layers:
            raise ValueError("layers is empty, but it should name one layer or more")
        return tuple(_one(layer) for layer in layers)
    return (_one(layers),)


def _one(layer: object) -> str | int:
    if isinstance(layer, bool) or not isinstance(layer, (str, Integral)):
        raise TypeError(f"layers has {layer!r}, but a layer is a name, an index, 'mid' or 'all'")
    return layer if isinstance(layer, str) else int(layer)


Mask = Literal["attention", "global", "high_frequency", "random", "square"]


@dataclass(frozen=True)
class Degraded:
    """The input is degraded first: its denoised image blurred where a mask says, its noise kept
    (SAG). The arguments are those of `fastguide.SAG`; `sigma` and `kernel_size` in pixels.
    """

    mask: Mask
    sigma: float | None
    kernel_size: int | None
    threshold: float
    share: float
    layers: Layers

    def __post_init__(self) -> None:
        check_name("mask", self.mask, get_args(Mask))
        if self.sigma is not None:
            check_number("sigma", self.sigma, 0.0, open_=True)
        if self.kernel_size is not None:
            check_int("kernel_size", self.kernel_size)
            if self.kernel_size % 2 == 0:
                raise ValueError(f"kernel_size is {self.kernel_size}, but it should be odd")
        check_number("threshold", self.threshold, 0.0)
        check_number("share", self.share, 0.0, 1.0)
