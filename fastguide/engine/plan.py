"""Solver x guidance x process, multiplied out on the host in double precision.

Row 0 of a plan is the start (x is noise of the right size), row k the update after evaluation k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fastguide.engine.path import Path, make_path
from fastguide.engine.pattern import Pattern, make_patterns, no_layers
from fastguide.engine.threshold import DynamicThreshold
from fastguide.guidance.base import Guidance
from fastguide.ops import table as _table
from fastguide.ops.table import Column, Extra
from fastguide.process import VP, ContinuousVP, Level, Prediction
from fastguide.solvers.update import SOURCES, Map, Solver, Update
from fastguide.spacing import Levels
from fastguide.staging.perturbation import Layers

PREVIEW = "preview"
HOST: Any = {"dtype": torch.float64, "device": "cpu"}  # whatever the process's defaults are
Start = Literal["noise", "image", "inverse"]
Noise = Literal["independent", "brownian"]


class Fact(IntEnum):
    """What an evaluation's passes may need to know of its level: columns of `Plan.facts`.

    ALPHA; MOVE, what a prediction at x + dx is to be given per dx to have the same eps at x; the
    INPUT_SCALE of the network's input; TIME, sigma / (alpha + sigma); GAIN, what a gradient of the
    log density at x is to be multiplied by to move the prediction by it; SIGMA.
    """

    ALPHA = 0
    MOVE = 1
    INPUT_SCALE = 2
    TIME = 3
    GAIN = 4
    SIGMA = 5


@dataclass(frozen=True)
class Row:
    """One row of a plan: the evaluation that precedes it (none for the start) and what it touches.

    `reads` and `writes` are bit masks over the slots; `draws` says that it adds noise, `learned`
    that the noise is scaled by the network's variance; `extra` is the image it reads beside the
    denoised one; `after` says that the image is clamped, and that gradients move it after that;
    `path` that the noise is an increment of the plan's path.
    """

    at: Level | None
    pattern: Pattern | None
    reads: int
    writes: int
    draws: bool
    learned: bool
    extra: Extra
    input_scale: float
    after: bool = False
    path: bool = False


@dataclass(frozen=True)
class At:
    """One row of a plan: what is static, and its numbers on the device. Or `each` sample of a batch
    at a row of its own, of plans that are stacked.

    Args:
        number: the index of the row, an int or an int64 tensor `[1]` on the device; of each sample
            int64 `[B]`: the number of its noise.
        index: the same, an int64 scalar tensor, for the kernels; of each sample int64 `[B]`: its
            row of the stacked tables.
        table, weights, time, nag, facts: the row of these tensors of the plan. Where each sample
            has one, `[width, B, 1, ...]`, `[B, 1 + K]`, `[B]`, `[B]` and `[6, B, 1, ...]`.
        ratio: `Fact.TIME` of the facts.
    """

    row: Row
    number: int | Tensor
    index: Tensor
    table: Tensor
    weights: Tensor
    time: Tensor
    nag: Tensor
    facts: Tensor
    ratio: Tensor

    @property
    def each(self) -> bool:
        """Whether each sample has a row of its own."""
        return self.index.ndim == 1

    @property
    def counted(self) -> Tensor:
        """What noise and reports count by, an int64 tensor: a scalar, or `[B]`."""
        return self.number if self.each and isinstance(self.number, Tensor) else self.index


@dataclass(frozen=True)
class Plan:
    """A run, worked out. The tensors lie on one device.

    Args:
        rows: the start, then one per update.
        slots: names of the state slots, "x" first.
        table: `[E, width(slots)]` (`fastguide.ops.table`).
        weights: `[E, B or 1, 1 + K]`: of x, then of the active branches of each row.
        times: `[E]`: the network's time of each row.
        nag: `[E, B or 1]`: NAG's scale.
        facts: `[E, 6]`: of the level; the columns are `Fact`.
        index: `[E]` int64: 0 ... E - 1, for the kernels.
        batch: the number of samples, where the guidance holds one value per sample.
        levels, start: of the run.
        threshold: bounds the denoised image per sample, or None.
        path: what rows draw that lie along one, or None.
    """

    rows: tuple[Row, ...]
    slots: tuple[str, ...]
    table: Tensor
    weights: Tensor
    times: Tensor
    nag: Tensor
    facts: Tensor
    index: Tensor
    batch: int | None
    levels: Levels
    start: Start = "noise"
    threshold: DynamicThreshold | None = None
    path: Path | None = None

    @property
    def from_image(self) -> bool:
        """Whether the run starts from an image that it is given."""
        return self.start != "noise"

    def level_after(self, e: int) -> Level | None:
        """Where x is after row `e`: where it is evaluated next. None where it is moved before."""
        if e + 1 < len(self.rows):
            return self.rows[e + 1].at
        return self.levels.points[-1]

    def at(self, e: int) -> At:
        """Row `e`, in views that are made once: indexing a tensor costs the host more than all of
        them at once.
        """
        return self._views[e]

    @cached_property
    def _views(self) -> list[At]:
        tensors = (self.index, self.table, self.weights, self.times, self.nag, self.facts)
        views = zip(*(one.unbind() for one in (*tensors, self.facts[:, Fact.TIME])), strict=True)
        return [At(row, e, *one) for e, (row, one) in enumerate(zip(self.rows, views, strict=True))]

    @property
    def learned(self) -> bool:
        """Whether any update scales its noise by the network's variance."""
        return any(row.learned for row in self.rows)

    @property
    def rewrites(self) -> bool:
        """Whether the weights of any update are only known when it is evaluated."""
        return any(row.pattern.rewrites for row in self.rows if row.pattern is not None)

    @property
    def evaluations(self) -> int:
        """Network evaluations of a run."""
        return sum(row.pattern is not None for row in self.rows)

    @property
    def largest(self) -> int:
        """The row whose evaluation has most network rows, the first of them."""
        counts = [0 if row.pattern is None else row.pattern.net_rows for row in self.rows]
        return counts.index(max(counts))

    @property
    def net_rows(self) -> int:
        """Network rows that one sample costs: those of all evaluations, less what is skipped. Rows
        that share a prefix with others count in full.
        """
        return sum(row.pattern.net_rows for row in self.rows if row.pattern is not None)

    @cached_property
    def patterns(self) -> tuple[Pattern, ...]:
        """All patterns, each once; also those that adaptive guidance may leave."""
        planned = [row.pattern for row in self.rows if row.pattern is not None]
        return tuple(dict.fromkeys([*planned, *(pattern.settled for pattern in planned)]))


def make_plan(
    prediction: Prediction,
    levels: Levels,
    solver: Solver,
    guidance: Guidance | None = None,
    clamp: tuple[float, float] | DynamicThreshold | None = None,
    preview: bool = False,
    start: Start = "noise",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    choose: Callable[[Layers], tuple[str, ...]] = no_layers,
    noise: Noise = "independent",
) -> Plan:
    """Multiply out a run.

    Args:
        choose: the names of the network's layers that a perturbation names.
        clamp: bounds of the denoised image, or how to find them for each sample.
        preview: keep the denoised image of each evaluation in a slot named "preview".
        start: what x is first: "noise"; the noised "image" that the run is given; or for "inverse"
            that image as it is, scaled to the first of the rising levels.
        noise: whether updates draw "independent" noise, or "brownian": increments of one path.
        dtype: of the tensors; the kernels take fp32, `fastguide.reference` fp64 too.

    Raises:
        ValueError: per-sample scales of different batches, a schedule that is not finite, a solver
            that reads a slot it never wrote, or a prediction that fails at one of the levels.
    """
    updates = list(solver.run(levels))
    visited = [update.at for update in updates if update.at is not None]
    updates = [Update(at=None, x=_start(levels, start)), *updates]
    if preview:
        updates = [
            u if u.at is None else replace(u, keep={**u.keep, PREVIEW: {"denoised": 1.0}})
            for u in updates
        ]
    slots = tuple(dict.fromkeys(["x", *(name for update in updates for name in update.keep)]))
    if len(slots) > _table.MAX_SLOTS:
        raise ValueError(f"{solver} keeps {len(slots)} slots, but at most {_table.MAX_SLOTS} fit")

    extras = [_extra(solver, update) for update in updates]
    needed = [extra == Extra.NEGATIVE for u, extra in zip(updates, extras, strict=True) if u.at]
    _check_zero_steps(prediction, guidance, solver, levels, updates)
    patterns, weights, nags, batch = make_patterns(guidance, visited, needed, choose, levels)
    threshold = clamp if isinstance(clamp, DynamicThreshold) else None
    low, high = clamp if isinstance(clamp, tuple) else (-math.inf, math.inf)
    scales = [1.0 if u.at is None else prediction.input_scale(u.at) for u in updates]
    table = torch.zeros(len(updates), _table.width(len(slots)), **HOST)
    packed = torch.zeros(
        len(updates), batch or 1, 1 + max(len(p.branches) for p in patterns), **HOST
    )
    nag = torch.ones(len(updates), batch or 1, **HOST)
    facts = torch.zeros(len(updates), len(Fact), **HOST)
    along = [noise == "brownian" and "noise" in u.x and u.over is not None for u in updates]
    rows, written, evaluation = [], {"x"}, 0
    for e, update in enumerate(updates):
        pattern = None
        if update.at is not None:
            pattern = patterns[evaluation]
            nag[e] = nags[evaluation]
            packed[e, :, : 1 + len(pattern.branches)] = weights[evaluation]
            a, b = prediction.denoised(update.at)
            table[e, Column.OF_X], table[e, Column.OF_PREDICTION] = a, b
            facts[e] = torch.tensor(_facts(update.at, a, b, scales[e]), **HOST)
            evaluation += 1
        table[e, Column.LOW], table[e, Column.HIGH] = low, high
        following = scales[e + 1] if e + 1 < len(updates) else 1.0
        table[e, Column.INPUT_SCALE], table[e, Column.SPREAD] = following, update.spread
        maps = {"x": update.x, **update.keep}
        _check_maps(solver, update, maps, written)
        matrix = _table.matrix(table[e])
        for name, sources in maps.items():
            for source, coefficient in sources.items():
                matrix[slots.index(name), _column(source, slots)] = coefficient
        used = matrix.ne(0).any(0).tolist()
        rows.append(
            Row(
                at=update.at,
                pattern=pattern,
                reads=sum(1 << j for j in range(len(slots)) if used[j]),
                writes=sum(1 << slots.index(name) for name in maps),
                draws=used[len(slots) + 1],
                learned=update.spread != 0.0,
                extra=extras[e],
                input_scale=following,
                after=clamp is not None and _led(pattern),
                path=along[e],
            )
        )
        written |= set(maps)
    _check_noise(solver, rows)
    path = None
    if noise == "brownian":
        path = _make_path(solver, updates, along, device, dtype)
    times = [0.0 if u.at is None else prediction.net_time(u.at) for u in updates]
    return Plan(
        rows=tuple(rows),
        slots=slots,
        table=table.to(device, dtype),
        weights=packed.to(device, dtype),
        times=torch.tensor(times, **HOST).to(device, dtype),
        nag=nag.to(device, dtype),
        facts=facts.to(device, dtype),
        index=torch.arange(len(updates), device=device),
        batch=batch,
        threshold=threshold,
        path=path,
        levels=levels,
        start=start,
    )


def _make_path(
    solver: Solver,
    updates: list[Update],
    along: list[bool],
    device: torch.device | str,
    dtype: torch.dtype,
) -> Path:
    if not any(along):
        raise ValueError(
            f"noise is 'brownian', but {solver} draws no noise that is an increment of a path from "
            "one level to the next; such are ddpm, euler_ancestral, dpmpp_2m_sde and dpmpp_3m_sde"
        )
    stretches = [u.over if one else None for u, one in zip(updates, along, strict=True)]
    return make_path(stretches, device, dtype)


def _check_zero_steps(
    prediction: Prediction,
    guidance: Guidance | None,
    solver: Solver,
    levels: Levels,
    updates: list[Update],
) -> None:
    """What a guidance asks of the prediction, however long the run is, and of the solver."""
    for term in guidance.terms() if guidance is not None else ():
        how = term.branch.projection
        if how is None or not how.zero_steps:
            continue
        churned = any(u.at and u.at not in levels.points and "noise" in u.x for u in updates)
        if churned:  # which step an evaluation between the levels belongs to cannot be told
            raise ValueError(
                f"zero_steps is {how.zero_steps}, but it should be 0 for {solver}, which adds "
                "noise and evaluates between the levels of its steps"
            )
        if prediction.name != "flow":
            raise ValueError(
                f"zero_steps is {how.zero_steps}, but it should be 0 for a network that predicts "
                f"{prediction.name!r}: it sets a velocity to 0"
            )


def _check_noise(solver: Solver, rows: list[Row]) -> None:
    """What a guidance asks of the solver."""
    branches = {branch for row in rows if row.pattern for branch in row.pattern.branches}
    if any(b.potential is not None and b.potential.mean for b in branches) and not any(
        row.draws and row.at is not None for row in rows
    ):
        raise ValueError(
            f"form is 'mean', which moves the mean of the solver's noise, but {solver} draws none"
        )


def _led(pattern: Pattern | None) -> bool:
    return pattern is not None and any(branch.leads for branch in pattern.branches)


def _start(levels: Levels, start: Start) -> dict[str, float]:
    """x at the first level; where churn raises that, the solver does so from there."""
    first = levels.points[0]
    if start == "image":
        return {"x": first.alpha, "noise": first.sigma}
    if start == "inverse":
        return {"x": first.alpha}  # in x / alpha the probability flow leaves the data unmoved
    return {"noise": start_std(levels)}


def start_std(levels: Levels) -> float:
    """What the start's noise is multiplied by."""
    if levels.start is not None:
        return levels.start
    # the marginal's own size: VP keeps the variance of normalised data, the others add to it
    normal = isinstance(levels.process, (VP, ContinuousVP))
    return 1.0 if normal else levels.points[0].sigma


def _column(source: str, slots: tuple[str, ...]) -> int:
    if source in SOURCES:
        return len(slots) + min(SOURCES.index(source), 2)  # both extras share the last column
    return slots.index(source)


def _extra(solver: Solver, update: Update) -> Extra:
    read = {name for sources in (update.x, *update.keep.values()) for name in sources}
    if {"unclamped", "negative"} <= read:
        raise ValueError(f"{solver} reads both unclamped and negative in one update")
    if "negative" in read:
        return Extra.NEGATIVE
    return Extra.UNCLAMPED if "unclamped" in read else Extra.NONE


def _check_maps(solver: Solver, update: Update, maps: dict[str, Map], written: set[str]) -> None:
    for name, sources in maps.items():
        for source, coefficient in sources.items():
            if source in SOURCES and source != "noise" and update.at is None:
                raise ValueError(f"{solver} reads {source} in an update without an evaluation")
            if source not in SOURCES and source not in written:
                raise ValueError(f"{solver} reads slot {source!r}, which was not written before")
            if not math.isfinite(coefficient):
                raise ValueError(
                    f"{solver} has the coefficient {coefficient} for {name} <- {source}"
                )


def _facts(at: Level, of_x: float, of_prediction: float, scale: float) -> list[float]:
    # sigma eps = (1 - alpha a) x - alpha b p: at x, p + move dx has the eps that p has at x + dx
    gain = at.alpha * of_prediction
    move = 0.0 if gain == 0.0 else -(1 - at.alpha * of_x) / gain
    of_gradient = 0.0 if gain == 0.0 else at.sigma**2 / gain  # x_0 moves by sigma^2 / alpha of it
    return [at.alpha, move, scale, at.sigma / (at.alpha + at.sigma), of_gradient, at.sigma]
