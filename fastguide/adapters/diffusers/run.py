"""Our loop turned inside out: a pipeline of diffusers keeps its own, and asks for one evaluation
and one update at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastguide import ops
from fastguide.adapters.diffusers.network import Adapted, Call
from fastguide.adapters.diffusers.programs import Compiled, Stepwise
from fastguide.adapters.diffusers.schedulers import Course, course_of, meaning_of
from fastguide.adapters.diffusers.whole import Whole
from fastguide.engine.evaluate import EMPTY, Evaluate
from fastguide.engine.gradient import differentiable
from fastguide.engine.passes import Conditions, Passes, make_passes
from fastguide.engine.pattern import Pattern, no_layers
from fastguide.engine.plan import Plan, make_plan
from fastguide.engine.run import update
from fastguide.guidance.base import Guidance
from fastguide.model import Model
from fastguide.sampling.conditions import named_conditions, random_condition
from fastguide.staging.contract import Staged, choose_layers
from fastguide.staging.perturbation import Layers

TEXTS = {"text", "pooled", "text_embeds", "encoder_hidden_states", "pooled_projections"}
NO_TENSOR = torch.empty(0)
KEPT_PLANS = 8  # of other numbers of steps, sizes or strengths


@dataclass(frozen=True)
class Draws:
    """How a run differs from another of the same pipeline.

    Args:
        seed: what layers draw by (TPG, TSG), sample i by seed + i.
        eta, use_clipped: of DDIM and TCD.
    """

    seed: int = 0
    eta: float = 0.0
    use_clipped: bool = False


@dataclass(frozen=True)
class Planned:
    """A run's plan.

    Args:
        alphas: what latents are multiplied with to be our x, before each row and after the last.
        scales: of the network's input for x, before each row.
    """

    course: Course
    plan: Plan
    alphas: tuple[float, ...]
    scales: tuple[float, ...]


class Run:
    """The runs of one accelerated pipeline, one at a time.

    Args:
        net: the network.
        scheduler: the pipeline's, a copy of its own.
        guidance: what to guide with.
        null_first: whether the negative rows of a doubled batch come first.
        separate: whether the pipeline asks for the negative prediction in a call of its own.
        compiled: whether each pattern is compiled, and with which options of `torch.compile`.
    """

    def __init__(
        self,
        net: Adapted | Whole,
        scheduler: Any,
        guidance: Guidance | None,
        null_first: bool = True,
        separate: bool = False,
        compiled: Mapping[str, Any] | None = None,
    ) -> None:
        self.net, self.scheduler, self.guidance = net, scheduler, guidance
        self.null_first, self.separate = null_first, separate
        self.meaning = meaning_of(scheduler)
        self.model = Model(net, self.meaning.process, self.meaning.prediction, (1,), net.null)
        self.names = named_conditions(self.model, guidance)
        if "target" in self.names and not isinstance(net.null, int):
            raise ValueError(
                "guidance by a classifier needs labels, but the network takes none as its condition"
            )
        self._others = {
            term.branch.net: term.branch.net.model
            for term in (guidance.terms() if guidance else ())
            if term.branch.net is not None
        }
        self._plans: dict[Any, Planned] = {}
        self._passes: dict[Pattern, Passes] = {}
        self._compiled = None if compiled is None else Compiled(compiled)
        self.draws = Draws()
        self.reset()

    @property
    def needs_negative(self) -> bool:
        """Whether the guidance has a branch under the negative condition."""
        return "negative" in self.names

    def reset(self) -> None:
        """Forget the run, and what it holds."""
        self.planned: Planned | None = None
        self.row, self.begin, self.batch = 1, 0, 0
        self._evaluate: Evaluate | None = None
        self._predict: Stepwise | None = None
        self._state = self._x = self._unread = NO_TENSOR
        self._fixed: Any = None
        self._leaves: list[Any] = []
        self._halves: tuple[Any, Any] = (None, None)
        self._positive: Call | None = None
        self._combined = EMPTY
        self._last: tuple[Tensor | None, int] = (None, 0)
        self._raw: Any = None

    # What the pipeline's network does

    def evaluate(self, call: Call) -> None:
        """Predict all branches at the current level."""
        rows = call.x.shape[0]
        if not self.needs_negative:
            self._combine(call.x, rows, (call.fixed, None), (call.varying, {}))
        elif not self.separate:
            if rows % 2:
                raise ValueError(
                    f"the pipeline runs {rows} rows, but with a negative condition it should run "
                    "two for each sample, from the first step to the last"
                )
            self._combine(call.x, rows // 2, call.fixed, call.varying)
        elif self._positive is None:
            self._positive = call
        else:
            first, self._positive = self._positive, None
            varying = (first.varying, call.varying)
            self._combine(first.x, rows, (first.fixed, call.fixed), varying)

    def _combine(self, x: Tensor, batch: int, fixed: Any, varying: Any) -> None:
        """Evaluate; `x` holds the samples once or twice."""
        x = self.net.unpack(x)
        planned = self.planned or self.start(x.device)
        if not self.batch:
            self._begin_batch(planned.plan, x, batch)
        if batch != self.batch:
            raise ValueError(
                f"the pipeline runs {batch} samples, but began with {self.batch}: what turns its "
                "own guidance off on the way is fg.CFG(scale, schedule=fg.interval(...)) here"
            )
        if self.row >= len(planned.plan.rows):
            return  # idle: the level does not change any more
        varies = any(varying) if isinstance(varying, tuple) else bool(varying)
        if self._bind_fixed(fixed) or varies:
            self._bind(self._whole(varying))
        assert self._evaluate is not None
        pattern = self._evaluate.pattern(planned.plan.rows[self.row])
        assert pattern is not None
        scale, state = planned.scales[self.row], x.narrow(0, 0, batch).float()
        state = state if scale == 1.0 else state / scale
        x = x.to(self._evaluate.predict.dtype)
        self._combined = self._evaluate(planned.plan.at(self.row), pattern, x, state)

    def start(self, device: torch.device, timestep: Any = None) -> Planned:
        """The plan of this run; where there is none yet, from the scheduler's begin on, which is
        where `timestep` is where the pipeline did not say.
        """
        if self.planned is not None:
            return self.planned
        begin = getattr(self.scheduler, "_begin_index", None)
        timesteps = self.scheduler.timesteps.tolist()
        if begin is None:
            begin = 0 if timestep is None else timesteps.index(float(timestep))
        sigmas = getattr(self.scheduler, "sigmas", None)
        numbers = None if sigmas is None else tuple(sigmas.tolist())
        key = (*timesteps, begin, self.draws.eta, self.draws.use_clipped, device, numbers)
        if key not in self._plans:
            self._plans[key] = self._make_plan(begin, device)
            while len(self._plans) > KEPT_PLANS:
                del self._plans[next(iter(self._plans))]
        self.begin, self.planned = begin, self._plans[key]
        return self.planned

    def _make_plan(self, begin: int, device: torch.device) -> Planned:
        course = course_of(self.scheduler, begin, self.draws.eta, self.draws.use_clipped)
        plan = make_plan(
            self.meaning.prediction,
            course.levels,
            course.solver,
            self.guidance,
            self.meaning.clamp,
            device=device,
            choose=self._choose,
        )
        evaluations = [e for e, row in enumerate(plan.rows) if row.pattern is not None]
        if evaluations != list(range(1, 1 + len(course.times))):
            raise RuntimeError(
                f"{course.solver} evaluates {len(evaluations)} times in {len(plan.rows)} rows, "
                f"but the scheduler has {len(course.times)} timesteps"
            )
        times = torch.tensor([0.0, *course.times], dtype=torch.float64)
        levels = [row.at for row in plan.rows[1:] if row.at is not None]
        alphas = (1.0, *(at.alpha for at in levels), course.levels.points[-1].alpha)
        scales = (1.0, *(self.meaning.prediction.input_scale(at) for at in levels))
        alphas = alphas if self.meaning.scaled else (1.0,) * len(alphas)
        return Planned(course, replace(plan, times=times.to(plan.times)), alphas, scales)

    def _begin_batch(self, plan: Plan, x: Tensor, batch: int) -> None:
        """What depends on the batch, once a run."""
        if plan.batch not in (None, batch):
            raise ValueError(
                f"guidance holds values for {plan.batch} samples, but the pipeline runs {batch}"
            )
        nets: dict[Any, Any] = {other: model.net for other, model in self._others.items()}
        graph = any(pattern.graph for pattern in plan.patterns)
        nets[None] = differentiable(self.net) if graph else self.net
        for pattern in plan.patterns:
            if pattern not in self._passes:
                self._passes[pattern] = make_passes(pattern, nets)
        shape = (len(plan.slots), batch, *x.shape[1:])
        self._state = torch.empty(shape, device=x.device, dtype=torch.float32)
        self._x = self._state[0]
        self._unread = torch.empty(batch, dtype=torch.int32, device=x.device)
        self.batch = batch

    def _choose(self, layers: Layers) -> tuple[str, ...]:
        if isinstance(self.net, Staged):
            return choose_layers(layers, self.net)
        return no_layers(layers, self.net.why_not_staged)

    def _bind_fixed(self, fixed: Any) -> bool:
        """Take the conditions of the run; whether they are new."""
        if self._evaluate is not None and _are(fixed, self._fixed):
            return False
        self._fixed = fixed
        leaves, _ = tree_flatten(fixed)
        same = len(leaves) == len(self._leaves) and all(
            a is b for a, b in zip(leaves, self._leaves, strict=True)
        )
        if self._evaluate is not None and same:
            return False
        self._leaves, self._raw = leaves, fixed
        prepare = (lambda cond: cond) if "random" in self.names else self.net.prepare
        if isinstance(fixed, tuple):
            positive, negative = fixed
            self._halves = (
                None if positive is None else prepare(positive),
                None if negative is None else prepare(negative),
            )
        else:
            self._halves = self._whole(None if fixed is None else prepare(fixed))
        return True

    def _whole(self, cond: Any) -> tuple[Any, Any]:
        """Positive and negative rows of conditions: a pair, or a doubled batch."""
        if isinstance(cond, tuple):
            return cond
        if cond is None or cond == {}:
            return cond, cond
        first, second = (tree_map(lambda leaf, h=half: leaf.chunk(2)[h], cond) for half in (0, 1))
        return (second, first) if self.null_first else (first, second)

    def _bind(self, varying: tuple[Any, Any]) -> None:
        positive, negative = (
            half if not values else {**half, **values}
            for half, values in zip(self._halves, varying, strict=True)
        )
        fixed: dict[Any, Any] = {None: {"cond": positive, "negative": negative}}
        for other, model in self._others.items():
            raw = self._raw if self.needs_negative else (self._raw[0], None)
            cond = self._whole(raw)[0]
            prepare: Callable[[Any], Any] = getattr(model.net, "prepare", lambda value: value)
            fixed[other] = {"cond": prepare(cond)}
            if getattr(model.net, "extra", False):  # its input holds a mask as this one's does
                fixed[other]["cond"]["extra"] = varying[0]["extra"]
        drawn = partial(_drawn, self.model, positive)
        target = positive if "target" in self.names else None
        conditions = Conditions(fixed, drawn if "random" in self.names else None, target)
        assert self.planned is not None
        if self._predict is not None and self._evaluate is not None:
            self._predict.rebind(conditions)
            return
        drawn_by = torch.arange(self.batch, dtype=torch.int64) + self.draws.seed
        seeds = ops.as_seeds(drawn_by, self._state.device)
        known = (conditions, seeds, self._dtype(), self.net.outputs)
        self._predict = Stepwise(self.planned.plan, self._passes, *known, self._compiled)
        self._evaluate = Evaluate(self._predict)

    def _dtype(self) -> torch.dtype:
        parameter = self.model.parameter
        return torch.float32 if parameter is None else parameter.dtype

    # What the pipeline's scheduler does

    def input_scale(self, timestep: Any, device: torch.device) -> float:
        """What the latents at `timestep` are multiplied with for the network."""
        planned = self.planned or self.start(device, timestep)
        if self.row >= len(planned.scales):
            return 1.0
        return planned.alphas[self.row] * planned.scales[self.row]

    def advance(self, sample: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """The latents after the current update."""
        if self.planned is None:
            raise RuntimeError("the pipeline's scheduler took a step before its network was asked")
        plan, alphas = self.planned.plan, self.planned.alphas
        if self.row >= len(plan.rows):
            return sample
        e, x = self.row, self._x
        doubled = sample.shape[0] == 2 * self.batch
        if sample is not self._last[0] or _version(sample) != self._last[1]:
            own = self.net.unpack(sample[: self.batch] if doubled else sample)
            if own.shape != x.shape:
                raise ValueError(
                    f"the pipeline's latents are {tuple(sample.shape)}, but its network was given "
                    f"{self.batch} samples of {tuple(x.shape[1:])}"
                )
            x.copy_(own)
            if alphas[e] != 1.0:
                x.mul_(alphas[e])
        noise = None
        if plan.rows[e].draws:
            noise = self.net.unpack(draw()[: self.batch]).float().contiguous()
        assert self._predict is not None
        known = (self._combined, self._unread, self._predict.seeds, noise)
        update(plan, plan.at(e), self._state, *known)
        self._combined = EMPTY
        self.row += 1
        alpha = alphas[self.row]
        packed = self.net.pack(x if alpha == 1.0 else x / alpha)
        out = packed.to(sample.dtype, copy=packed is x)
        out = torch.cat([out, out]) if doubled else out
        self._last = (out, _version(out))
        return out


def _drawn(model: Model, cond: Any, seeds: Tensor) -> Any:
    """`cond` with another label, or noise for its text; sizes and masks stay."""
    if not isinstance(cond, dict):
        return random_condition(model, cond, seeds)
    texts = {name: value for name, value in cond.items() if name in TEXTS}
    return {**cond, **random_condition(model, texts, seeds)}


def _are(one: Any, other: Any) -> bool:
    """Whether two conditions, or two pairs of them, are the same objects."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(a is b for a, b in zip(one, other, strict=True))
    return one is other


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
