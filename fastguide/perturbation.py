"""What may be done to a layer of a network in chosen rows: named by guidance, routed by the engine,
obeyed by the networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """The self-attention map is the identity: `out = v` (PAG)."""


@dataclass(frozen=True)
class BlurredQueries:
    """The queries of self-attention are blurred on their grid, `sigma` in tokens; inf is their mean
    (SEG).
    """

    sigma: float

    def __post_init__(self) -> None:
        if math.isnan(self.sigma) or self.sigma < 0:
            raise ValueError(f"sigma is {self.sigma}, but it should be 0 or more, or inf")


@dataclass(frozen=True)
class Shuffled:
    """The layer's input tokens are permuted, anew for each sample and evaluation (TPG)."""


@dataclass(frozen=True)
class Skipped:
    """The layer is left out, residual connection and all: its output is its input (SLG, STG)."""


Perturbation = Identity | BlurredQueries | Shuffled | Skipped

Layers = str | int | tuple[str | int, ...]


def as_layers(layers: object) -> Layers:
    """`layers` as guidance takes it: a name, an index, "mid", "all", or a list of names and
    indices.
    """
    if isinstance(layers, (list, tuple, range)):
        if not layers:
            raise ValueError("layers is empty, but it should name one layer or more")
        return tuple(_one(layer) for layer in layers)
    return _one(layers)


def _one(layer: object) -> str | int:
    if isinstance(layer, bool) or not isinstance(layer, (str, int)):
        raise TypeError(f"layers has {layer!r}, but a layer is a name, an index, 'mid' or 'all'")
    return layer
