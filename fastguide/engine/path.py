"""Noise along a path: the increments of one Brownian motion per seed and element, so that runs of
other step counts that draw by it approach the same image.

The motion runs over s = sigma / (alpha + sigma) in [0, 1], which is the t of flow, whatever the
levels of a run. It is Levy's: `W(s) = s Z_0 + sum over levels l of hat_l(s) Z_node`, with `hat_l(s)
= 2^(-l/2 - 1) (1 - |2 p - 1|)`, p where s lies in its dyadic interval of length 2^-l, node =
2^l + the interval's index, and each Z a standard normal by (seed, node, element). An end of a step
is taken to the nearest multiple of 2^-DEPTH; there the sum is finite, and exactly of the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastguide import ops
from fastguide.process import Level

DEPTH = 20  # nodes are below 2^20; steps down to 1e-6 of s are told apart
_STREAM = 2**32 + 1  # beside that of what is known of an image; evaluations lie below

Stretch = tuple[Level, Level]


@dataclass(frozen=True)
class Path:
    """The unit increment of each row of a plan as a sum over nodes.

    Args:
        nodes: int64 `[E, K]`.
        gains: `[E, K]`, whose squares add up to 1; 0 where a row has fewer nodes, or no increment.
    """

    nodes: Tensor
    gains: Tensor


def make_path(
    stretches: Sequence[Stretch | None], device: torch.device | str, dtype: torch.dtype
) -> Path:
    """The increments `(W(s) - W(s')) / sqrt(s - s')` of stretches from s down to s'.

    Raises:
        ValueError: the ends of one cannot be told apart.
    """
    sums = [{} if one is None else _increment(one) for one in stretches]
    width = max(map(len, sums))
    nodes = torch.zeros(len(sums), width, dtype=torch.int64, device="cpu")
    gains = torch.zeros(len(sums), width, dtype=torch.float64, device="cpu")
    for e, terms in enumerate(sums):
        for k, (node, gain) in enumerate(terms.items()):
            nodes[e, k], gains[e, k] = node, gain
    return Path(nodes.to(device), gains.to(device, dtype))


def draw(path: Path, index: Tensor, seeds: Tensor, shape: Sequence[int]) -> Tensor:
    """The increment of row `index`, an int64 scalar tensor: fp32 `[B, *shape]`, sample i of
    `seeds[i]` alone.
    """
    own = ops.derive_seeds(seeds, _STREAM)
    nodes = path.nodes.index_select(0, index.view(1))[0]
    gains = path.gains.index_select(0, index.view(1))[0]
    total = gains[0] * ops.noise(own, shape, nodes[:1])
    for k in range(1, len(nodes)):
        total.add_(gains[k] * ops.noise(own, shape, nodes[k : k + 1]))
    return total


def _increment(stretch: Stretch) -> dict[int, float]:
    now, to = map(_place, stretch)
    if now == to:
        raise ValueError(
            f"noise is 'brownian', but {stretch[0]} and {stretch[1]} are too close to tell apart: "
            f"sigma / (alpha + sigma) should differ by {2.0**-DEPTH:.1g} or more"
        )
    total = _terms(now)
    for node, gain in _terms(to).items():
        total[node] = total.get(node, 0.0) - gain
    size = (abs(now - to) / 2**DEPTH) ** 0.5
    return {node: gain / size for node, gain in total.items() if gain != 0.0}


def _place(level: Level) -> int:
    """s in units of 2^-DEPTH."""
    return round(level.sigma / (level.alpha + level.sigma) * 2**DEPTH)


def _terms(place: int) -> dict[int, float]:
    """W(s) as a sum of the nodes' normals."""
    terms = {0: place / 2**DEPTH}
    for level in range(DEPTH):
        length = 2 ** (DEPTH - level)
        inside = place % length
        hat = 1.0 - abs(2 * inside - length) / length
        terms[2**level + place // length] = 2.0 ** (-level / 2 - 1) * hat
    return {node: gain for node, gain in terms.items() if gain != 0.0}
