"""Per-sample weights from inner products: the projections and rescales of a pattern."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastguide.engine.pattern import Pattern
from fastguide.guidance.base import Branch
from fastguide.guidance.modifiers import Rescale

ROUNDING = 2.0**-20  # of the sums of ops.gram, which begin in fp32
_P0, _X0, _DELTAS = 0, 1, 2  # the vectors of ops.gram


class Products:
    """`fastguide.guidance.modifiers.Gram` of one evaluation.

    Args:
        gram: fp64 `[B, n, n + 1]`, of `ops.gram`.
        gain: denoised = gain * prediction + ..., `[1]`, or `[B]` where samples have their own.
        numel: elements of a sample.
        null: which delta is that of the null condition.
    """

    def __init__(self, gram: Tensor, gain: Tensor, numel: int, null: int | None = None) -> None:
        self.products, self.sums = gram[:, :, :-1], gram[:, :, -1]
        self.gain, self.numel, self.null = gain.double(), numel, null
        self._units = torch.eye(gram.shape[1], dtype=torch.float64, device=gram.device)

    def unit(self, which: int | Literal["p_0", "x0"]) -> Tensor:
        """`[B, n]`: the coefficients of one vector, delta k for the number k."""
        named = {"p_0": _P0, "x0": _X0}
        index = named[which] if isinstance(which, str) else _DELTAS + which - 1
        return self._units[index].expand(self.products.shape[0], -1)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """`<u, v>`, `[B]`."""
        return (u * torch.einsum("bij,bj->bi", self.products, v)).sum(1)

    def rounding(self, u: Tensor) -> Tensor:
        """What the rounding of inner products may make of `std(u)` where all elements are one
        number, `[B]`: a thousandth of its size.
        """
        sizes = self.products.diagonal(dim1=1, dim2=2).clamp(min=0.0).sqrt()
        return (ROUNDING / self.numel) ** 0.5 * (u.abs() * sizes).sum(1)

    def std(self, u: Tensor) -> Tensor:
        """The unbiased standard deviation of the elements, `[B]`."""
        total = (u * self.sums).sum(1)
        variance = (self.inner(u, u) - total.square() / self.numel) / max(self.numel - 1, 1)
        return variance.clamp(min=0.0).sqrt()


def projected_weights(
    pattern: Pattern, products: Products, weights: Tensor, memory: dict[Branch, dict[str, Tensor]]
) -> Tensor:
    """The weights of `ops.step` fp64 `[B, 1 + K]`, of x and of each branch.

    Args:
        weights: the plan's, `[B or 1, 1 + K]`.
        memory: what projections keep during a run.
    """
    batch, size = products.products.shape[:2]
    contributions: list[tuple[Tensor, tuple[Rescale, ...]]] = []
    for k, branch in enumerate(pattern.branches[1 : size - 1], 1):
        weight = weights[:, 1 + k].double().expand(batch)
        if branch.projection is None:
            one = weight[:, None] * products.unit(k)
        else:
            kept = memory.setdefault(branch, {})
            one = branch.projection.contribution(products, k, weight, kept)
        contributions.append((one, branch.rescales))
    total = _rescaled(products, contributions)
    out = torch.empty((batch, size), dtype=torch.float64, device=total.device)
    out[:, 0] = 1.0 + total[:, _X0]
    out[:, 1] = 1.0 + total[:, _X0] + total[:, _P0]
    out[:, 2:] = total[:, _DELTAS:]
    return out


def _rescaled(
    products: Products, contributions: list[tuple[Tensor, tuple[Rescale, ...]]]
) -> Tensor:
    """The sum of all, what lies within a rescale first summed and rescaled, from within."""
    while any(rescales for _, rescales in contributions):
        innermost = next(r[0] for _, r in contributions if r and _is_innermost(r[0], contributions))
        inside = [one for one, rescales in contributions if rescales[:1] == (innermost,)]
        outer = next(r[1:] for _, r in contributions if r[:1] == (innermost,))
        rest = [(one, r) for one, r in contributions if r[:1] != (innermost,)]
        scaled = innermost.contribution(products, torch.stack(inside).sum(0))
        contributions = [*rest, (scaled, outer)]
    if not contributions:
        return torch.zeros_like(products.unit("p_0"))
    return torch.stack([one for one, _ in contributions]).sum(0)


def _is_innermost(
    rescale: Rescale, contributions: list[tuple[Tensor, tuple[Rescale, ...]]]
) -> bool:
    """Whether nothing that lies within it is within another rescale first."""
    return all(rescale not in rescales[1:] for _, rescales in contributions)
