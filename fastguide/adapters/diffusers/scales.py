"""What a pipeline's call says about its guidance: the scale of its CFG term, and a rescale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from fastguide.guidance.base import Amount, Guidance, Sum
from fastguide.guidance.cfg import CFG
from fastguide.guidance.schedule import values_of
from fastguide.process import Level

Scale = float | tuple[float, ...]


@dataclass(frozen=True)
class Listed:
    """One scale for each step of the pipeline; a step may have several evaluations."""

    scales: tuple[float, ...]

    def values(self, levels: Sequence[Level]) -> list[float]:
        """One for each evaluation."""
        n, count = len(self.scales), len(levels)
        scales = [max(scale, 1.0) for scale in self.scales]  # below 1 a pipeline has no CFG
        if count == n:
            return scales
        if count == 2 * n - 1:  # Heun's, which evaluates the level between two steps for both
            return [scales[e // 2] for e in range(count)]
        if count == n + 1:  # that of PNDM, which evaluates twice in its first step
            return [scales[max(e - 1, 0)] for e in range(count)]
        raise ValueError(
            f"guidance_scale holds {n} scales, but the run has {count} evaluations: it should hold "
            "one for each step"
        )


@dataclass(frozen=True)
class Cut:
    """A factor that is 0 after a share of the run: of its evaluations ("steps"), or of a flow's
    time, which begins at 1 ("time").
    """

    share: float
    of: str
    schedule: Any = None  # that it is a factor on

    def values(self, levels: Sequence[Level]) -> list[float]:
        """One for each evaluation."""
        n = len(levels)
        if self.of == "steps":
            on = [(i + 1) / n <= self.share for i in range(n)]
        else:
            on = [1.0 - at.t <= self.share for at in levels]
        before = [1.0] * n if self.schedule is None else values_of(self.schedule, levels)
        return [value * is_on for value, is_on in zip(before, on, strict=True)]


@dataclass(frozen=True)
class Changed:
    """Another scale from evaluation number `begin` on."""

    before: Amount
    scale: float
    begin: int

    def values(self, levels: Sequence[Level]) -> list[float]:
        """One for each evaluation."""
        if isinstance(self.before, Tensor):
            raise ValueError(
                "a callback sets the guidance scale, but the guidance holds one for each sample"
            )
        earlier = self.before
        if isinstance(earlier, (int, float)):
            old = [float(earlier)] * len(levels)
        else:
            old = values_of(earlier, levels)
        return [*old[: self.begin], *[self.scale] * (len(levels) - self.begin)]


def cfg_terms(guidance: Guidance | None) -> list[CFG]:
    """The CFG terms of a guidance, wherever they are."""
    if guidance is None:
        return []
    if isinstance(guidance, CFG):
        return [guidance]
    return [term for inner in _inner(guidance) for term in cfg_terms(inner)]


def with_scale(guidance: Guidance, amount: Amount) -> Guidance:
    """The guidance with another scale in its CFG term."""
    return _changed(guidance, lambda cfg: replace(cfg, scale=amount))


def with_cut(guidance: Guidance, share: float, of: str) -> Guidance:
    """The guidance with `Cut` in its CFG terms."""
    return _changed(guidance, lambda cfg: replace(cfg, schedule=Cut(share, of, cfg.schedule)))


def _changed(guidance: Guidance, change: Callable[[CFG], CFG]) -> Guidance:
    """The guidance with its CFG terms changed, wherever they are."""
    if isinstance(guidance, CFG):
        return change(guidance)
    if isinstance(guidance, Sum):
        return Sum(tuple(_changed(part, change) for part in guidance.parts))
    if is_dataclass(guidance):
        for field in fields(guidance):
            inner = getattr(guidance, field.name)
            if isinstance(inner, Guidance):
                guidance = replace(guidance, **{field.name: _changed(inner, change)})
    return guidance


def _inner(guidance: Guidance) -> list[Guidance]:
    if isinstance(guidance, Sum):
        return list(guidance.parts)
    names: list[str] = [one.name for one in fields(guidance)] if is_dataclass(guidance) else []
    found: list[Any] = [getattr(guidance, name) for name in names]
    return [one for one in found if isinstance(one, Guidance)]


def is_on(scale: Scale) -> bool:
    """Whether a pipeline runs negative rows for it."""
    return any(one > 1 for one in (scale if isinstance(scale, tuple) else (scale,)))


def guided(
    base: Guidance | None, name: str, scale: Scale | None, rescale: float, lacks: float = 0.0
) -> Guidance | None:
    """The guidance of a call.

    Args:
        base: what `fastguide.guide` was given.
        name, scale: the argument of the call, as ours; None where it says nothing.
        rescale: the call's `guidance_rescale`.
        lacks: what the argument was less than ours, as in `Family`.

    Raises:
        ValueError: the guidance has another scale, or a rescale, already.
    """
    found = base
    if scale is not None:
        amount: Any = Listed(scale) if isinstance(scale, tuple) else scale
        terms = cfg_terms(base)
        same = [
            term for term in terms if isinstance(term.scale, (int, float)) and term.scale == scale
        ]
        if len(same) < len(terms):
            told = [s - lacks for s in scale] if isinstance(scale, tuple) else scale - lacks
            meant = f" (a CFG of {lacks} more)" if lacks else ""
            raise ValueError(
                f"{name} is {told} in the call{meant}, but the guidance has its own: {base!r}"
            )
        if not terms and is_on(scale):
            found = CFG(amount) if base is None else base + CFG(amount)
    if rescale and found is not None and found.terms():
        if any(term.branch.rescales for term in found.terms()):
            raise ValueError(
                f"guidance_rescale is {rescale} in the call, but the guidance has its own: {base!r}"
            )
        found = found.rescale(rescale)
    return found
