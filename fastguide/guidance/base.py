"""What every guidance is: a sum of terms, each the weight of one branch's delta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from fastguide.common.checks import check_int, check_number, shown
from fastguide.common.hashing import hash_once
from fastguide.guidance.modifiers import HighPass, Norm, Projection, Rectified, Rescale, Space
from fastguide.guidance.potential import Potential
from fastguide.guidance.schedule import Schedule, check_schedule, is_schedule, values_of
from fastguide.model import Model
from fastguide.process import Level
from fastguide.staging.perturbation import Degraded, Layers, Perturbation

Amount = float | Schedule | Callable[[Level], float] | Sequence[float] | Tensor
Factor = Schedule | Callable[[Level], float] | Sequence[float] | None
OFF = 1e-6  # a scale this near to 1 is off: what rounding leaves of an interpolated one
Condition = Literal["cond", "negative", "random", "null"]


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


@hash_once
@dataclass(frozen=True)
class Branch:
    """One delta: from the positive prediction to another, and what is done to it.

    The other is the output head `head` of the network run under the condition `cond`. "negative" is
    the negative condition, or the null one where none is given; "null" the null one in any case;
    "random" is drawn anew at each evaluation. Head 1 comes from the same pass as head 0. `how` is
    done to `layers`; `degraded` to the input, after the first pass; with `moved` the input is moved
    by a constant; `net` is another network. With a `potential` there is no other prediction: the
    delta is its gradient.

    The delta is computed at each `every`-th evaluation and held between; then only its `channels`
    are kept, where there are any, `high_pass` keeps its fine scales, `rectified` multiplies it,
    `projection` and the `rescales`, inner ones first, set its weight; what all that have a `norm`
    add up to is held to it.
    """

    cond: Condition = "cond"
    head: int = 0
    how: Perturbation | None = None
    layers: Layers = ()
    degraded: Degraded | None = None
    moved: bool = False
    net: Other | None = None
    potential: Potential | None = None
    every: int = 1
    channels: tuple[int, ...] = ()
    high_pass: HighPass | None = None
    rectified: Rectified | None = None
    projection: Projection | None = None
    rescales: tuple[Rescale, ...] = ()
    norm: Norm | None = None

    @cached_property
    def delta(self) -> Branch:
        """The delta as it comes, before anything is done to it."""
        plain = replace(self, high_pass=None, rectified=None, projection=None, rescales=())
        return replace(plain, channels=(), norm=None)

    @cached_property
    def prediction(self) -> Branch:
        """The prediction that the delta leads away from."""
        return replace(self.delta, every=1)

    @cached_property
    def rows(self) -> Branch:
        """The block of rows that the prediction is a view of."""
        return replace(self.prediction, head=0)

    @property
    def derived(self) -> bool:
        """Whether the delta is not simply the difference of two predictions."""
        chained = self.rectified is not None and self.rectified.mode == "chain"
        moving = self.projection is not None and self.projection.momentum != 0.0
        cut = self.high_pass is not None or bool(self.channels)
        return self.potential is not None or cut or chained or moving

    @property
    def leads(self) -> bool:
        """Whether it is a gradient that moves the denoised image and whose weight is its own: where
        images are clamped, it moves the clamped one.
        """
        moves = self.potential is not None and not self.potential.mean
        return moves and self.projection is None and not self.rescales

    def with_head(self, head: int) -> Branch:
        """Another head of the same rows."""
        if head == self.head:
            return self
        found = self._heads.get(head)  # asked for at each evaluation
        if found is None:
            found = self._heads[head] = replace(self, head=head)
        return found

    @cached_property
    def _heads(self) -> dict[int, Branch]:
        return {}

    @property
    def source(self) -> Branch:
        """The clean rows that these were made from."""
        return Branch(self.cond)


POSITIVE = Branch()


def as_amount(amount: Any) -> Any:
    """A number, where `amount` is a tensor or an array of no dimensions; a tensor for an array."""
    if not isinstance(amount, Tensor) and hasattr(amount, "__array__") and hasattr(amount, "ndim"):
        amount = torch.as_tensor(amount, device="cpu")
    if isinstance(amount, Tensor) and amount.ndim == 0 and not amount.is_complex():
        return amount.item()
    return amount


@dataclass(frozen=True, eq=False)
class Term:
    """`weight (p_0 - p_branch)`, with weight = sign * times * (amount - off) * schedule.

    Args:
        amount: a number, a schedule of numbers, a list of one per step, or a tensor of one per
            sample `[B]`.
        off: the amount that means off: 1 for a `scale`, 0 for a `weight`.
        name: how the user called the amount, for errors.
        sign: 1 or -1.
        times: what the user multiplied the guidance with.
    """

    branch: Branch
    amount: Amount
    off: float
    name: str
    schedule: Factor = None
    sign: float = 1.0
    times: float = 1.0

    def __post_init__(self) -> None:
        check_int("every", self.branch.every)
        object.__setattr__(self, "amount", as_amount(self.amount))
        if isinstance(self.schedule, (list, tuple)):
            for value in self.schedule:
                check_number("a value of schedule", value)
        else:
            check_schedule("schedule", self.schedule)
        if isinstance(self.amount, Tensor):
            if self.amount.ndim != 1 or not self.amount.is_floating_point():
                raise ValueError(
                    f"{self.name} is {self.amount.dtype} of shape {tuple(self.amount.shape)}, "
                    "but a tensor should hold one floating-point value per sample, [B]"
                )
            if not len(self.amount):
                raise ValueError(f"{self.name} is empty, but it should hold one value per sample")
            if not bool(torch.isfinite(self.amount).all()):
                raise ValueError(f"{self.name} is {self.amount}, but it should be finite")
        elif isinstance(self.amount, (list, tuple)):
            if not self.amount:
                raise ValueError(f"{self.name} is empty, but a list holds one value per step")
            for value in self.amount:
                check_number(f"a value of {self.name}", value)
        elif isinstance(self.amount, bool) or not (
            isinstance(self.amount, Real) or is_schedule(self.amount)
        ):
            raise TypeError(
                f"{self.name} is {shown(self.amount)}, but it should be a number, a schedule or a "
                "tensor"
            )
        elif isinstance(self.amount, Real):
            check_number(self.name, self.amount)

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
        elif isinstance(self.amount, Real):
            amounts = torch.tensor([[float(self.amount)]], dtype=torch.float64, device="cpu")
        else:
            schedule: Any = self.amount  # as was checked
            amounts = torch.tensor(
                values_of(schedule, levels), dtype=torch.float64, device="cpu"
            ).unsqueeze(1)
        if self.off == 1.0:
            amounts = torch.where((amounts - 1.0).abs() <= OFF, 1.0, amounts)
        factors = [1.0] * len(levels) if self.schedule is None else values_of(self.schedule, levels)
        column = (
            self.sign
            * self.times
            * torch.tensor(factors, dtype=torch.float64, device="cpu").unsqueeze(1)
        )
        weights = (amounts - self.off) * column
        if not bool(torch.isfinite(weights).all()):
            bad = int((~torch.isfinite(weights)).any(1).nonzero()[0])
            raise ValueError(f"{self.name} or its schedule is not finite at {levels[bad]}")
        return weights


@dataclass(frozen=True, eq=False)
class Inside:
    """NAG inside the attention of the positive rows and their perturbed copies; `term` has its
    scale. Where queries are `shared` the negative's are the positive's.
    """

    term: Term
    tau: float
    alpha: float
    layers: Layers
    shared: bool = False


@dataclass(frozen=True)
class Instead:
    """Rows under the negative condition are those of a network whose `layers` are changed by `how`,
    in place of the clean ones, where `schedule` is 1; in between a share of both.
    """

    how: Perturbation
    layers: Layers
    schedule: Factor

    def applied(self, terms: Sequence[Term]) -> tuple[Term, ...]:
        """The terms with it."""
        found: list[Term] = []
        for term in terms:
            clean = term.branch.cond == "negative" and term.branch.how is None
            if not clean or term.branch.degraded is not None:
                found.append(term)
                continue
            changed = replace(term.branch, how=self.how, layers=self.layers)
            if self.schedule is not None:
                rest = Shared(term.schedule, self.schedule, rest=True)
                found.append(replace(term, schedule=rest))
            schedule = term.schedule
            if self.schedule is not None:
                schedule = Shared(term.schedule, self.schedule)
            found.append(replace(term, branch=changed, schedule=schedule))
        return tuple(found)


@dataclass(frozen=True)
class Shared:
    """One factor times another, or times the `rest` that the other leaves of 1."""

    factor: Factor
    share: Factor
    rest: bool = False

    def values(self, levels: Sequence[Level]) -> list[float]:
        """One for each evaluation."""
        ones = [1.0] * len(levels)
        first = ones if self.factor is None else values_of(self.factor, levels)
        shares = ones if self.share is None else values_of(self.share, levels)
        return [a * (1.0 - b if self.rest else b) for a, b in zip(first, shares, strict=True)]


class Guidance:
    """A sum of terms; guidances add up: `CFG(4.0) + CFG(2.0, schedule=interval(0.3, 2.9))`, also by
    `sum([...])`. `2 * CFG(2.0)` has twice the weight, which is `scale - 1`: it is CFG(3.0).
    `str(guidance)` is the text that `parse` reads.
    """

    __array_ufunc__ = None  # a number of NumPy times a guidance is a guidance

    def __post_init__(self) -> None:
        self.terms()  # both check their settings
        self.inside()

    def terms(self) -> tuple[Term, ...]:
        """The terms, in order."""
        raise NotImplementedError

    def inside(self) -> tuple[Inside, ...]:
        """What happens inside the network's attention."""
        return ()

    def instead(self) -> tuple[Instead, ...]:
        """What is done to the negative rows of the guidances beside it."""
        return ()

    def __add__(self, other: Guidance) -> Guidance:
        if not isinstance(other, Guidance):
            return NotImplemented
        return Sum((self, other))

    def __radd__(self, other: object) -> Guidance:
        if isinstance(other, int) and other == 0:  # where `sum` begins
            return self
        return NotImplemented

    def __mul__(self, times: float) -> Guidance:
        if isinstance(times, Guidance):
            raise TypeError(
                f"{self} * {times} has two guidances, but one is multiplied by a number"
            )
        return Scaled(self, times)

    __rmul__ = __mul__

    def __str__(self) -> str:
        from fastguide.guidance.said import said  # which knows all guidances

        return said(self)

    def rescale(self, share: float = 0.7, space: Space = "prediction") -> Guidance:
        """The guided prediction d, with the positive's standard deviation given back to a `share`
        of it: `d (share std(p_0) / std(d) + 1 - share)`, per sample (Lin et al. 2023, section 3.4).

        Of a sum, that of what is within: `CFG(7.5).rescale(0.7) + PAG(1.0)`.

        Args:
            share: in [0, 1], 0 is off.
            space: of the standard deviations: the network's "prediction" or the "denoised" image.
        """
        return Modified(self, "rescales", Rescale(share, space))


@dataclass(frozen=True, eq=False)
class Modified(Guidance):
    """`guidance` with something done to each of its deltas: the field `name` of their branches."""

    guidance: Guidance
    name: Literal["high_pass", "rectified", "projection", "rescales", "norm"]
    value: Any

    def terms(self) -> tuple[Term, ...]:
        return tuple(self._modified(term) for term in self.guidance.terms())

    def instead(self) -> tuple[Instead, ...]:
        return self.guidance.instead()

    def inside(self) -> tuple[Inside, ...]:
        return self.guidance.inside()

    def _modified(self, term: Term) -> Term:
        branch, outer = term.branch, _ORDER[_ORDER.index(self.name) :]
        if self.name == "rescales" and branch.norm is None:
            if self.value.share == 0.0:
                return term
            return replace(term, branch=replace(branch, rescales=(*branch.rescales, self.value)))
        taken = [name for name in outer if getattr(branch, name)]
        if taken:
            raise ValueError(
                f"guidance of {_SAID[self.name]} has {_SAID[taken[0]]} within, but the order from "
                f"within is {', '.join(_SAID[name] for name in _ORDER)}, each once (but rescale)"
            )
        if self.name == "projection" and term.sign < 0:
            raise ValueError(
                f"guidance of {_SAID[self.name]} has a delta of two terms, as of='negative' makes, "
                "but it should have one"
            )
        return replace(term, branch=replace(branch, **{self.name: self.value}))


_SAID = {
    "high_pass": "a high pass",
    "rectified": "REG",
    "projection": "a projection (APG, CFGZeroStar, TCFG, MAMBO, Adaptive)",
    "rescales": "rescale",
    "norm": "a norm (CFGNorm)",
}
_ORDER = tuple(_SAID)


def as_channels(channels: Sequence[int]) -> tuple[int, ...]:
    """The channels as a branch has them, each once, rising."""
    if not isinstance(channels, Sequence) or isinstance(channels, (str, bytes)):
        raise TypeError(f"channels is {shown(channels)}, but it should be integers from 0 on")
    chosen = tuple(sorted(channels)) if all(isinstance(c, int) for c in channels) else (-1,)
    bad = [c for c in chosen if isinstance(c, bool) or not isinstance(c, int) or c < 0]
    if bad or len(set(chosen)) != len(chosen):
        raise ValueError(f"channels is {channels!r}, but it should be different integers from 0 on")
    return chosen


def no_guidance(value: object) -> TypeError:
    """The error of what is given as a guidance, but is none."""
    hint = ""
    if isinstance(value, str):
        hint = f"; fastguide.parse({shown(value)}) reads text"
    elif isinstance(value, type) and issubclass(value, Guidance):
        hint = f"; give it its amount: {value.__name__}(3.0)"
    return TypeError(
        f"guidance is {shown(value)}, but it should be a Guidance such as CFG(3.0), or None{hint}"
    )


def check_guidance(name: str, guidance: Guidance) -> None:
    """Raise TypeError unless `guidance` is one with a delta."""
    if not isinstance(guidance, Guidance) or not guidance.terms():
        raise TypeError(
            f"guidance of {name} is {guidance!r}, but it should be a guidance with a delta, such "
            "as CFG(3.0)"
        )


@dataclass(frozen=True, eq=False)
class Scaled(Guidance):
    """A guidance whose terms have their weights `times` as large; within `rescale` and projections
    too, so that `2 * CFG(3.0).rescale()` is `CFG(5.0).rescale()`.
    """

    guidance: Guidance
    times: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", as_amount(self.times))
        check_number("times", self.times)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        return tuple(self._scaled(term) for term in self.guidance.terms())

    def inside(self) -> tuple[Inside, ...]:
        found = self.guidance.inside()
        return tuple(replace(one, term=self._scaled(one.term)) for one in found)

    def instead(self) -> tuple[Instead, ...]:
        return self.guidance.instead()

    def _scaled(self, term: Term) -> Term:
        return replace(term, times=term.times * float(self.times))


@dataclass(frozen=True, eq=False)
class Sum(Guidance):
    """The sum of several guidances."""

    parts: tuple[Guidance, ...]

    def terms(self) -> tuple[Term, ...]:
        found = tuple(term for part in self.parts for term in part.terms())
        for one in self.instead():
            found = one.applied(found)
        return found

    def instead(self) -> tuple[Instead, ...]:
        return tuple(one for part in self.parts for one in part.instead())

    def inside(self) -> tuple[Inside, ...]:
        return tuple(one for part in self.parts for one in part.inside())
