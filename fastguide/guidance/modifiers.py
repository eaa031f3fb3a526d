"""What may be done to a delta before it is added: named by guidance, done by the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from fastguide.common.checks import check_int, check_name, check_number
from fastguide.guidance.schedule import Schedule, check_schedule

Mode = Literal["vjp", "chain", "difference"]
Space = Literal["prediction", "denoised"]


@dataclass(frozen=True)
class HighPass:
    """The delta less what remains of it at half its resolution, `levels` times (FDG)."""

    levels: int = 1

    def __post_init__(self) -> None:
        check_int("levels", self.levels)


@dataclass(frozen=True)
class Rectified:
    """REG: the arguments are those of `fastguide.REG`."""

    mode: Mode
    every: int
    within: Schedule | Any
    step: float | None
    checkpoint: bool

    def __post_init__(self) -> None:
        check_name("mode", self.mode, get_args(Mode))
        check_int("every", self.every)
        check_schedule("within", self.within)
        if self.mode == "chain" and self.every != 1:
            raise ValueError(
                f"every is {self.every} with mode 'chain', but it should be 1: no factor is held"
            )
        if self.step is not None:
            check_number("step", self.step, 0.0, open_=True)
        if self.step is not None and self.mode != "difference":
            raise ValueError(f"step is {self.step} with mode {self.mode!r}, but should be None")


class Gram(Protocol):
    """Inner products over each sample's elements, fp64, of vectors that are given by their
    coefficients `[B, n]` over p_0, the positive's denoised image x0, and the deltas.
    """

    gain: Tensor  # denoised = gain * prediction + ..., `[1]` or `[B]`
    null: int | None  # which delta is that of the clean rows under the null condition

    def unit(self, which: int | Literal["p_0", "x0"]) -> Tensor: ...
    def inner(self, u: Tensor, v: Tensor) -> Tensor: ...
    def std(self, u: Tensor) -> Tensor: ...
    def rounding(self, u: Tensor) -> Tensor: ...


class Projection(Protocol):
    """A delta's contribution, once inner products are known.

    `contribution(gram, k, weight, memory)` returns coefficients `[B, n]` of what is added to the
    positive prediction, for delta k with weight `[B]`; `memory` is the run's own, for what a
    projection must keep from one evaluation to the next; what is absent from it counts as zeros. An
    x0 among the coefficients stands for itself: it is added to the denoised image. `momentum`,
    where it is not 0, is added up first: the delta is `m = b delta + momentum m_previous` in the
    denoised image. One that `latches` keeps in `memory["off"]`, bool `[B]`, which samples its
    contribution is 0 for from now on.
    """

    @property
    def momentum(self) -> float: ...
    @property
    def zero_steps(self) -> int: ...
    @property
    def latches(self) -> bool: ...
    def contribution(
        self, gram: Gram, k: int, weight: Tensor, memory: dict[str, Tensor]
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Rescale:
    """`fastguide.Guidance.rescale`."""

    share: float = 0.7
    space: Space = "prediction"

    def __post_init__(self) -> None:
        check_number("share", self.share, 0.0, 1.0)
        check_space(self.space)

    def contribution(self, gram: Gram, total: Tensor) -> Tensor:
        """What is added to the positive in place of `total` `[B, n]`."""
        guided, positive = total.clone(), gram.unit("p_0")
        if self.space == "denoised":  # x0 + gain (the deltas and p_0 of the total) + its x0
            guided = gram.gain[:, None] * guided
            guided[:, 1] = 1.0 + total[:, 1]
            positive = gram.unit("x0")
        else:  # x0 is added to the denoised image, which is gain times this one and more
            guided[:, 1] = guided[:, 1] / gram.gain
            guided[:, 0] += 1.0
        std, rounding = gram.std(guided), gram.rounding(guided)
        flat = std <= rounding  # a constant image has no deviation that could be given back
        ratio = torch.where(flat, 1.0, gram.std(positive) / torch.where(flat, 1.0, std))
        excess = self.share * (ratio - 1.0)
        scaled = total * (1.0 + excess)[:, None]
        scaled[:, 1 if self.space == "denoised" else 0] += excess
        return scaled


@dataclass(frozen=True, eq=False)
class Norm:
    """The arguments of `fastguide.CFGNorm`; `axes` are those of one sample, None all of them."""

    axes: tuple[int, ...] | None
    cap: float
    grows: bool

    def __post_init__(self) -> None:
        check_number("cap", self.cap, 0.0, open_=True)

    def factor(self, guided: Tensor, positive: Tensor) -> Tensor:
        """What the guided prediction `[B, *shape]` is multiplied with, fp32."""
        of_sample = positive.ndim - 1
        chosen = range(of_sample) if self.axes is None else self.axes
        bad = [axis for axis in chosen if not -of_sample <= axis < of_sample]
        if bad:
            raise ValueError(f"axes has {bad[0]}, but a sample has {of_sample} axes")
        axes = tuple(1 + axis % of_sample for axis in chosen)
        own, size = (
            torch.linalg.vector_norm(one.float(), dim=axes, keepdim=True)
            for one in (positive, guided)
        )
        nothing = size == 0.0
        ratio = self.cap * own / torch.where(nothing, 1.0, size)
        ratio = ratio if self.grows else ratio.clamp(max=1.0)
        return torch.where(nothing, 1.0, ratio)


def check_space(space: str) -> None:
    """Raise ValueError unless `space` is one."""
    check_name("space", space, get_args(Space))
