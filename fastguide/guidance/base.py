"""What every guidance is: a sum of terms, each the weight of one branch's delta."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fastguide.guidance.schedule import Schedule, values_of
from fastguide.model import Model
from fastguide.perturbation import Degraded, Layers, Perturbation
from fastguide.process import Level

Amount = float | Schedule | Callable[[Level], float] | Tensor
Factor = Schedule | Callable[[Level], float] | None
Condition = Literal["cond", "negative", "random"]


@dataclass(frozen=True)
class Other:
    """Another network; `key` is the identity of `model`, so that one that is named twice runs
    once.
    """

    key: int
    model: Model = field(compare=False)

    @classmethod
    def of(cls, name: str, model: Model) -> Other:
        """The network of `model`, which the user called `name`."""
        if not isinstance(model, Model):
            raise TypeError(
                f"{name} is a {type(model).__name__}, but it should be a fastguide.Model"
            )
        return cls(id(model), model)


@dataclass(frozen=True)
class Branch:
    """One prediction: the output head `head` of the network run under the condition `cond`.

    "negative" is the negative condition, or the null one where none is given; "random" is drawn
    anew at each evaluation. Head 1 comes from the same pass as head 0. `how` is done to `layers`;
    `degraded` to the input, after the first pass; `net` is another network. The delta is computed
    at each `every`-th evaluation and held between.
    """

    cond: Condition = "cond"
    head: int = 0
    how: Perturbation | None = None
    layers: Layers = ()
    degraded: Degraded | None = None
    net: Other | None = None
    every: int = 1

    @property
    def rows(self) -> Branch:
        """The block of rows that the branch is a view of."""
        return replace(self, head=0, every=1)

    @property
    def at_once(self) -> Branch:
        """The same, whenever it is computed."""
        return replace(self, every=1)

    def with_head(self, head: int) -> Branch:
        """Another head of the same rows."""
        return replace(self, head=head)

    @property
    def source(self) -> Branch:
        """The clean rows that these were made from."""
        return Branch(self.cond)


POSITIVE = Branch()


@dataclass(frozen=True, eq=False)
class Term:
    """`weight (p_0 - p_branch)`, with weight = sign * (amount - off) * schedule.

    Args:
        amount: a number, a schedule of numbers, or one number per sample `[B]`.
        off: the amount that means off: 1 for a `scale`, 0 for a `weight`.
        name: how the user called the amount, for errors.
        sign: 1 or -1.
    """

    branch: Branch
    amount: Amount
    off: float
    name: str
    schedule: Factor = None
    sign: float = 1.0

    def __post_init__(self) -> None:
        every = self.branch.every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every is {every!r}, but it should be an integer, 1 or more")
        if isinstance(self.amount, Tensor):
            if self.amount.ndim != 1 or not self.amount.is_floating_point():
                raise ValueError(
                    f"{self.name} is {self.amount.dtype} of shape {tuple(self.amount.shape)}, "
                    "but a tensor should hold one floating-point value per sample, [B]"
                )
            if not bool(torch.isfinite(self.amount).all()):
                raise ValueError(f"{self.name} is {self.amount}, but it should be finite")
        elif isinstance(self.amount, (int, float)):
            if not math.isfinite(self.amount):
                raise ValueError(f"{self.name} is {self.amount}, but it should be finite")
        elif not callable(self.amount) and not hasattr(self.amount, "values"):
            raise TypeError(
                f"{self.name} is {self.amount!r}, but it should be a number, a schedule or a tensor"
            )

    @property
    def batch(self) -> int | None:
        """The number of samples, where the amount is one number per sample."""
        return self.amount.shape[0] if isinstance(self.amount, Tensor) else None

    def weights(self, levels: Sequence[Level]) -> Tensor:
        """fp64 `[E, 1]` or `[E, B]`, on the CPU.

        Raises:
            ValueError: a schedule gives a value that is not finite.
        """
        if isinstance(self.amount, Tensor):
            amounts = self.amount.detach().to("cpu", torch.float64).unsqueeze(0)
        elif isinstance(self.amount, (int, float)):
            amounts = torch.tensor([[float(self.amount)]], dtype=torch.float64)
        else:
            amounts = torch.tensor(values_of(self.amount, levels), dtype=torch.float64).unsqueeze(1)
        factors = [1.0] * len(levels) if self.schedule is None else values_of(self.schedule, levels)
        column = self.sign * torch.tensor(factors, dtype=torch.float64).unsqueeze(1)
        weights = (amounts - self.off) * column
        if not bool(torch.isfinite(weights).all()):
            bad = int((~torch.isfinite(weights)).any(1).nonzero()[0])
            raise ValueError(f"{self.name} or its schedule is not finite at {levels[bad]}")
        return weights


@dataclass(frozen=True, eq=False)
class Inside:
    """NAG inside the attention of the positive rows and their perturbed copies; `term` has its
    scale.
    """

    term: Term
    tau: float
    alpha: float
    layers: Layers


class Guidance:
    """A sum of terms; guidances add up: `CFG(4.0) + CFG(2.0, schedule=interval(0.3, 2.9))`."""

    def __post_init__(self) -> None:
        self.terms()  # both check their settings
        self.inside()

    def terms(self) -> tuple[Term, ...]:
        """The terms, in order."""
        raise NotImplementedError

    def inside(self) -> tuple[Inside, ...]:
        """What happens inside the network's attention."""
        return ()

    def __add__(self, other: Guidance) -> Guidance:
        if not isinstance(other, Guidance):
            return NotImplemented
        return Sum((self, other))


@dataclass(frozen=True, eq=False)
class Sum(Guidance):
    """The sum of several guidances."""

    parts: tuple[Guidance, ...]

    def terms(self) -> tuple[Term, ...]:
        return tuple(term for part in self.parts for term in part.terms())

    def inside(self) -> tuple[Inside, ...]:
        return tuple(one for part in self.parts for one in part.inside())
