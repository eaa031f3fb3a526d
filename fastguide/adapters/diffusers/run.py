"""Our loop turned inside out: a pipeline of diffusers keeps its own, and asks for one evaluation
and one update at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastguide import ops
from fastguide.adapters.diffusers import relay
from fastguide.adapters.diffusers.cache import Cache, Entry
from fastguide.adapters.diffusers.calls import Gather
from fastguide.adapters.diffusers.draws import Draws
from fastguide.adapters.diffusers.families import Family
from fastguide.adapters.diffusers.look import State, keeps_state
from fastguide.adapters.diffusers.network import Call, NotUnderstood
from fastguide.adapters.diffusers.plans import Planned, planned, scheduler_key
from fastguide.adapters.diffusers.programs import Stepwise
from fastguide.adapters.diffusers.scales import Changed, Listed, cfg_terms, with_scale
from fastguide.adapters.diffusers.schedulers import NotOurs
from fastguide.adapters.diffusers.seen import Seen
from fastguide.adapters.diffusers.whole import Whole, computes_in, merged
from fastguide.engine.evaluate import EMPTY, Evaluate
from fastguide.engine.gradient import differentiable
from fastguide.engine.passes import Conditions, make_passes
from fastguide.engine.pattern import no_layers
from fastguide.engine.plan import Plan
from fastguide.engine.program import RowMode
from fastguide.engine.run import update
from fastguide.guidance.base import POSITIVE, Branch, Guidance
from fastguide.guidance.cfg import CFG
from fastguide.model import Model
from fastguide.sampling.conditions import named_conditions, random_condition
from fastguide.sampling.finite import check_finite
from fastguide.staging.conditions import narrowed, rows_of
from fastguide.staging.contract import Staged, choose_layers
from fastguide.staging.perturbation import Layers

PLAIN = Draws()
TEXTS = {"text", "pooled", "text_embeds", "encoder_hidden_states", "pooled_projections"}
NEGATIVE = Branch("negative")
NO_TENSOR = torch.empty(0)


@dataclass(frozen=True)
class Settings:
    """What a run is of.

    Args:
        family: how the pipeline calls its network.
        guidance: what to guide with.
        draws: what the call draws by.
        watched: whether something of the caller's runs between steps, so that conditions, latents
            and modules may be others at each.
        scale: reads the guidance scale that is set on the pipeline, or None.
        second, second_guidance: the network of the levels below the pipeline's boundary.
        rows: how many the pipeline runs for each sample, where it combines them itself.
    """

    family: Family
    guidance: Guidance | None
    draws: Draws = PLAIN
    watched: bool = False
    scale: Callable[[], Any] = lambda: None
    second: Any = None
    second_guidance: Guidance | None = None
    rows: int = 1


class Run:
    """One run of a guided pipeline; all state of it is here.

    Args:
        inner: the pipeline's network.
        scheduler: a copy of its scheduler.
        cache: of what runs share.
    """

    def __init__(self, inner: Any, scheduler: Any, settings: Settings, cache: Cache) -> None:
        self.inner, self.scheduler, self.settings = inner, scheduler, settings
        self.guidance, self.cache = settings.guidance, cache
        self.relayed, self.meaning = relay.read(scheduler, settings.family.why_relayed)
        inside = () if self.guidance is None else self.guidance.inside()
        shared = "NAG with shared queries" if any(one.shared for one in inside) else None
        self.why_whole = settings.family.why_relayed or settings.family.whole or shared
        self._enter(cache.entry(inner, self.meaning.time_scale, self.why_whole))
        model = self.model
        self.names = named_conditions(model, self.guidance)
        if "target" in self.names and not isinstance(self.net.null, int):
            raise ValueError(
                "guidance by a classifier needs labels, but the network takes none as its condition"
            )
        terms = self.guidance.terms() if self.guidance is not None else ()
        self._others = {t.branch.net: t.branch.net.model for t in terms if t.branch.net is not None}
        self._zeros: tuple[Any, Any] = (None, None)
        self.reset()

    def _enter(self, entry: Entry) -> None:
        """Go on with what was made from the network as it is."""
        self.entry = entry
        self.net, self._passes = entry.of_run
        self._mode: RowMode = "batched"
        self._gather = Gather(self.net)
        if isinstance(self.net, Whole) and entry.compiled is not None:
            raise ValueError(f"compile is on, but {self.net.why_not_staged}")
        self.model = Model(
            self.net, self.meaning.process, self.meaning.prediction, (1,), self.net.null
        )

    @property
    def needs_negative(self) -> bool:
        """Whether the guidance has a branch under the negative condition."""
        return "negative" in self.names

    @property
    def in_force(self) -> float | None:
        """The guidance scale of this step, where the call gave one for each."""
        terms = cfg_terms(self.guidance)
        if len(terms) != 1 or not isinstance(terms[0].scale, Listed):
            return None
        theirs = self.settings.family.theirs
        scales = terms[0].scale.scales
        if self.planned is None:
            return theirs(scales[0])
        levels = [row.at for row in self.planned.plan.rows if row.at is not None]
        return theirs(terms[0].scale.values(levels)[min(self.row, len(levels)) - 1])

    def reset(self) -> None:
        """To the start of the run."""
        self.planned: Planned | None = None
        self.row, self.begin, self.batch = 1, 0, 0
        self._evaluate: Evaluate | None = None
        self._predict: Stepwise | None = None
        self._state = self._x = self._first_bad = NO_TENSOR
        self._fixed: Any = None
        self._seen = Seen()
        self._halves: tuple[Any, Any] = (None, None)
        self._positive: tuple[Call, Tensor | None] | None = None
        self._unanswered: list[Tensor] = []
        self._told_time: Any = None  # what the network was told first
        self._combined, self._stepped = EMPTY, False
        self._last = Seen()
        self._kept: Any = None  # what earlier evaluations left, under another plan
        self._raw: Any = None
        self._scale: Any = None
        self._modules = State(self.inner) if self.settings.watched else None

    # What the pipeline's network does

    def predict(self, args: tuple[Any, ...], kwargs: dict[str, Any], net: Any = None) -> Any:
        """Predict all branches at the current level; what the pipeline is given is zeros.

        Args:
            net: the network that the pipeline calls, which may be the second of two.
        """
        if net is not None and net is self.settings.second:
            self._go_on_with(net)
        if self.planned is None:
            name = getattr(self.net, "time", "timestep")
            self._told_time = args[1] if len(args) > 1 else kwargs.get(name)
        if self._modules is not None and self._evaluate is not None:
            now = State(self.inner)
            if now != self._modules:
                self._modules = now
                self.switch(None)
        try:
            call = self._gather(args, kwargs)
        except NotUnderstood as error:
            if isinstance(self.net, Whole):
                raise
            self.switch(str(error))
            call = self._gather(args, kwargs)
        if self.settings.family.why_relayed is not None:
            return self._added(call, self._returned(args, kwargs, call))
        own = self._own(args, kwargs, call) if isinstance(self.net, Whole) else None
        self._take(call, own)
        if self.relayed is not None:
            return self._answer(call)
        shape = call.x.shape
        if shape != self._zeros[0]:
            made = (shape[0], shape[1] * self.net.outputs, *shape[2:])
            zeros = call.x.new_zeros(()).expand(made)
            net = self.net
            self._zeros = shape, net.as_returned(zeros) if isinstance(net, Whole) else zeros
        return self._zeros[1]

    def _answer(self, call: Call) -> Any:
        """The guided prediction for every row that the pipeline asks for. Where it asks for the
        positive rows first, these are written once the negative ones have been seen.
        """
        shape = (call.x.shape[0], call.x.shape[1] * self.net.outputs, *call.x.shape[2:])
        answer = call.x.new_full(shape, float("nan"))
        self._unanswered.append(answer)
        if self._positive is None:
            guided, variance = self._state[0], self._combined.variance
            if self.net.outputs == 2 and variance is not None:
                guided = torch.cat([guided, variance], 1)
            guided = self.net.pack(guided)
            if isinstance(self.net, Whole) and self.net.told.negated:
                guided = -guided
            for one in self._unanswered:
                one.copy_(guided.repeat(one.shape[0] // self.batch, *[1] * (guided.ndim - 1)))
            self._unanswered.clear()
            self._combined = EMPTY
        return self.net.as_returned(answer) if isinstance(self.net, Whole) else answer

    def _added(self, call: Call, own: Tensor) -> Tensor:
        """The network's own answer, with what guidance adds to the positive rows, the first, added
        to all: a pipeline that combines them with weights that sum to one adds it once.
        """
        rows = call.x.shape[0] // self.settings.rows
        cond, varying = tree_map(lambda leaf: leaf[:rows], (call.fixed, call.varying))
        given = {POSITIVE: own[:rows]}
        self._combine(call.x[:rows], rows, (cond, None), (varying, {}), given)
        self._combined = EMPTY
        added = (self._state[0] - own[:rows]).to(own.dtype)
        return own + added.repeat(self.settings.rows, *[1] * (added.ndim - 1))

    def _own(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Tensor | None:
        """The network's own answer to the pipeline's call; None where its rows run beside others,
        in passes of ours.
        """
        assert isinstance(self.net, Whole)
        if self.planned is None:
            self.start(call.x.device)
        assert self.planned is not None
        rows = self.planned.plan.rows
        pattern = rows[self.row].pattern if self.row < len(rows) else None
        if pattern is not None:
            if not all(one.how is None for one in pattern.computed):
                return None
            negative = any(one.cond == "negative" for one in pattern.computed)
            doubled = self._positive is not None or call.x.shape[0] == 2 * self.batch
            if doubled and not negative and pattern.nag is None:
                return None
        return self._returned(args, kwargs, call)

    def _returned(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Tensor:
        """What the network returns for the pipeline's call."""
        assert isinstance(self.net, Whole)
        out = self.inner(*args, **merged(kwargs, {"return_dict": False}))[0]
        return self.net.answer(out, call.x.shape[1])

    def _go_on_with(self, net: Any) -> None:
        """The second network, under its own guidance."""
        if net is self.inner:
            return
        self.inner, self.guidance = net, self.settings.second_guidance
        self._modules = State(net) if self.settings.watched else None
        self.switch(None)

    def switch(self, why_whole: str | None) -> None:
        """Go on with the network as it is now, or as one for the reason `why_whole`."""
        why = why_whole or self.why_whole
        self._enter(self.cache.entry(self.inner, self.meaning.time_scale, why))
        if self.planned is not None:
            self._plan_anew()

    def _plan_anew(self) -> None:
        """Another plan of the same levels, with what earlier evaluations left."""
        assert self.planned is not None
        self.planned = self._make_plan(self.planned.plan.index.device)
        kept = None if self._evaluate is None else dict(self._evaluate.kept)
        self._fixed, self._seen = None, Seen()
        self._evaluate = self._predict = None
        if self.batch:
            self._make_passes(self.planned.plan)
        self._kept = kept

    def _take(self, call: Call, own: Tensor | None) -> None:
        """Evaluate, once the pipeline has asked for all that it asks for."""
        rows = call.x.shape[0]
        if not self.needs_negative or (rows == self.batch and not self.settings.family.separate):
            given = None if own is None else {POSITIVE: own}
            self._combine(call.x, rows, (call.fixed, None), (call.varying, {}), given)
        elif not self.settings.family.separate:
            if rows % 2:
                raise ValueError(
                    f"the pipeline runs {rows} rows, but with a negative condition it should run "
                    "two for each sample at the first step"
                )
            given = None if own is None else dict(zip(self._order(), own.chunk(2), strict=True))
            self._combine(call.x, rows // 2, call.fixed, call.varying, given)
        elif self._positive is None:
            self._positive = call, own
        else:
            (first, answer), self._positive = self._positive, None
            found = {POSITIVE: answer, NEGATIVE: own}
            given = {branch: one for branch, one in found.items() if one is not None}
            varying = (first.varying, call.varying)
            self._combine(first.x, rows, (first.fixed, call.fixed), varying, given)

    def _order(self) -> tuple[Branch, Branch]:
        """How a doubled batch lies."""
        return (NEGATIVE, POSITIVE) if self.settings.family.null_first else (POSITIVE, NEGATIVE)

    def _combine(
        self, x: Tensor, batch: int, fixed: Any, varying: Any, given: dict[Branch, Tensor] | None
    ) -> None:
        """Evaluate; `x` holds the samples once or twice."""
        x = self.net.unpack(x)
        if self.planned is None:
            self.start(x.device)
        if not self.batch:
            self._begin_batch(x, batch)
        if batch != self.batch:
            raise ValueError(f"the pipeline runs {batch} samples, but began with {self.batch}")
        self._follow()
        assert self.planned is not None
        plan = self.planned.plan
        if self.row >= len(plan.rows):
            if self.relayed is not None:
                raise ValueError(
                    f"the pipeline evaluates its network a {self.row}th time, but its scheduler "
                    f"has {len(plan.rows) - 1} timesteps from where it began"
                )
            return  # idle: the level does not change any more
        pattern = plan.rows[self.row].pattern
        assert pattern is not None
        single = isinstance(fixed, tuple) and fixed[1] is None and fixed[0] is not None
        if single and any(branch.cond == "negative" for branch in pattern.branches):
            raise ValueError(
                f"the pipeline runs {batch} rows for {batch} samples, but the guidance needs "
                f"negative ones: it is {self.guidance!r}"
            )
        varies = any(varying) if isinstance(varying, tuple) else bool(varying)
        if self._bind_fixed(fixed) or varies or self._evaluate is None:
            self._bind(self._whole(varying))
        assert self._evaluate is not None
        assert self._predict is not None
        self._predict.given = given
        now = self._evaluate.pattern(plan.rows[self.row])
        assert now is not None
        scale, state = self.planned.scales[self.row], x.narrow(0, 0, batch).float()
        state = state if scale == 1.0 else state / scale
        x = x.to(self._predict.dtype)
        self._combined = self._evaluate(plan.at(self.row), now, x, state)
        self._predict.given = None
        if self.planned.guided is not None:
            self._guide(self.planned.guided, state)

    def _guide(self, plan: Plan, state: Tensor) -> None:
        """Make x the guided prediction; the scheduler takes the step."""
        self._x.copy_(state)
        assert self._predict is not None
        known = (self._combined, self._first_bad, self._seeds)
        update(plan, plan.at(self.row), self._state, *known, checked=self._stepped)
        self.row, self._stepped = self.row + 1, True

    def _follow(self) -> None:
        """Take the guidance scale that a callback has set on the pipeline."""
        scale = self.settings.scale()
        if self._scale is None:
            self._scale = scale
        if scale == self._scale:
            return
        ours = self.settings.family.ours(float(scale))
        self._scale, at, now = scale, self.row - 1, max(ours, 1.0)
        terms = cfg_terms(self.guidance)
        if len(terms) > 1:
            raise ValueError(
                f"a callback sets the guidance scale to {scale}, but the guidance has "
                f"{len(terms)} CFG terms: {self.guidance!r}"
            )
        if terms:
            assert self.guidance is not None
            self.guidance = with_scale(self.guidance, Changed(terms[0].scale, now, at))
        elif ours > 1:
            if not self.needs_negative:
                raise ValueError(
                    f"a callback sets the guidance scale to {scale}, but the run has no negative "
                    "condition: its guidance scale was 1 or less at the start"
                )
            new = CFG(Changed(1.0, now, at))
            self.guidance = new if self.guidance is None else self.guidance + new
        else:
            return
        self._plan_anew()

    def start(self, device: torch.device, timestep: Any = None) -> Planned:
        """The plan of this run; where there is none yet, from the scheduler's begin on, which is
        where `timestep` is where the pipeline did not say.
        """
        if self.planned is not None:
            return self.planned
        begin = getattr(self.scheduler, "_begin_index", None)
        if begin is None:
            if timestep is None and not hasattr(self.scheduler, "_begin_index"):
                timestep = self._told_time
            begin = 0 if timestep is None else _place(timestep, self.scheduler.timesteps.tolist())
        self.begin = begin
        if self.relayed is None:
            try:
                return self._start(device)
            except NotOurs as error:
                self.relayed, self.meaning = str(error), relay.relayed_meaning(self.scheduler)
        return self._start(device)

    def _start(self, device: torch.device) -> Planned:
        begin, draws = self.begin, self.settings.draws
        told = (self.guidance, begin, draws.eta, draws.use_clipped, device, self.relayed)
        key = (*told, scheduler_key(self.scheduler))
        self.planned = self.entry.plan(key, partial(self._make_plan, device))
        return self.planned

    def _make_plan(self, device: torch.device) -> Planned:
        known = (self.scheduler, self.meaning, self.guidance, self.begin, self.settings.draws)
        return planned(*known, device, self.choose, self.relayed)

    def _begin_batch(self, x: Tensor, batch: int) -> None:
        """What depends on the batch, once a run."""
        assert self.planned is not None
        plan = self.planned.plan
        if plan.batch not in (None, batch):
            raise ValueError(
                f"guidance holds values for {plan.batch} samples, but the pipeline runs {batch}"
            )
        self._make_passes(plan)
        self._kept = None
        shape = (len(plan.slots), batch, *x.shape[1:])
        self._state = torch.empty(shape, device=x.device, dtype=torch.float32)
        self._x = self._state[0]
        rows = len(plan.rows)
        self._first_bad = torch.full((batch,), rows, dtype=torch.int32, device=x.device)
        self.batch = batch
        self._seeds = ops.as_seeds(self.settings.draws.of_batch(batch), x.device)

    def _make_passes(self, plan: Plan) -> None:
        nets: dict[Any, Any] = {other: model.net for other, model in self._others.items()}
        graph = any(pattern.graph for pattern in plan.patterns)
        nets[None] = differentiable(self.net) if graph else self.net
        for pattern in plan.patterns:
            if pattern not in self._passes:
                self._passes[pattern] = make_passes(pattern, nets, self._mode)

    def choose(self, layers: Layers) -> tuple[str, ...]:
        """The names of the network's layers that are meant."""
        if isinstance(self.net, Staged):
            return choose_layers(layers, self.net)
        return no_layers(layers, self.net.why_not_staged)

    def _bind_fixed(self, fixed: Any) -> bool:
        """Take the conditions of the run; whether they are new."""
        watched = self.settings.watched
        if self._evaluate is not None and not watched and _are(fixed, self._fixed):
            return False
        self._fixed = fixed
        leaves, _ = tree_flatten(fixed)
        if self._evaluate is not None and self._seen.same(leaves):
            return False
        self._seen, self._raw = Seen(leaves, watched), fixed
        prepare = (lambda cond: cond) if "random" in self.names else self.net.prepare
        if isinstance(fixed, tuple):
            positive, negative = fixed
            known = self._halves[1]  # of earlier steps, where the pipeline leaves it out
            self._halves = (
                None if positive is None else prepare(positive),
                known if negative is None else prepare(negative),
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
        first, second = (tree_map(partial(_half, half), cond) for half in (0, 1))
        return (second, first) if self.settings.family.null_first else (first, second)

    def _bind(self, varying: tuple[Any, Any]) -> None:
        positive, negative = (
            half if not values else {**(half or {}), **values}
            for half, values in zip(self._halves, varying, strict=True)
        )
        fixed: dict[Any, Any] = {None: {"cond": positive, "negative": negative}}
        for other, model in self._others.items():
            cond = self._whole(self._raw)[0]
            prepare: Callable[[Any], Any] = getattr(model.net, "prepare", lambda value: value)
            fixed[other] = {"cond": prepare(cond)}
            if getattr(model.net, "extra", False):  # its input holds a mask as this one's does
                fixed[other]["cond"]["extra"] = varying[0]["extra"]
        drawn = partial(_drawn, self.model, positive)
        target = positive if "target" in self.names else None
        conditions = Conditions(fixed, drawn if "random" in self.names else None, target)
        assert self.planned is not None
        if self._mode == "batched" and not conditions.joinable:
            self._mode, self._passes, self._predict = "sequential", {}, None
            self._make_passes(self.planned.plan)
            if self._evaluate is not None:
                self._kept = dict(self._evaluate.kept)
        if self._predict is not None and self._evaluate is not None:
            self._predict.rebind(conditions)
            return
        plan = self.planned.plan
        known = (conditions, self._seeds, self._dtype(), self.net.outputs)
        left = [row.pattern for row in plan.rows[self.row :] if row.pattern is not None]
        patterns = dict.fromkeys([*left, *(pattern.settled for pattern in left)])
        passes = {pattern: self._passes[pattern] for pattern in patterns}
        self._predict = Stepwise(plan, passes, *known, self.entry.compiled)
        self._predict.check = self._check_extra if isinstance(self.net, Whole) else None
        self._evaluate = Evaluate(self._predict)
        if self._kept is not None:
            kept = {key: value for key, value in self._kept.items() if key[0] != "weights"}
            kept["weights", POSITIVE, ""] = self._evaluate.weights
            self._evaluate = Evaluate(self._predict, kept)
            self._kept = None

    def _check_extra(self) -> None:
        """Raise where the network may not run beside the pipeline's own calls."""
        if keeps_state(self.inner):
            raise ValueError(
                f"the guidance {self.guidance!r} runs the network more often than its pipeline "
                "does, but a cache is enabled on it (enable_cache), which counts its calls; "
                "call disable_cache"
            )

    def _dtype(self) -> torch.dtype:
        if isinstance(self.net, Whole):
            return computes_in(self.inner)
        parameter = self.model.parameter
        return torch.float32 if parameter is None else parameter.dtype

    # What the pipeline's scheduler does

    def input_scale(self, timestep: Any, device: torch.device) -> float:
        """What the latents at `timestep` are multiplied with for the network."""
        known = self.planned or self.start(device, timestep)
        if self.row >= len(known.scales):
            return 1.0
        return known.alphas[self.row] * known.scales[self.row]

    def advance(self, sample: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """The latents after the current update."""
        if self._positive is not None:  # and no negative, which the pipeline leaves out at times
            (first, own), self._positive = self._positive, None
            given = None if own is None else {POSITIVE: own}
            varying: tuple[Any, Any] = (first.varying, {})
            self._combine(first.x, first.x.shape[0], (first.fixed, None), varying, given)
        if self.planned is None:
            raise RuntimeError("the pipeline's scheduler took a step before its network was asked")
        plan, alphas = self.planned.plan, self.planned.alphas
        if self.row >= len(plan.rows):
            return sample
        e, x = self.row, self._x
        doubled = sample.shape[0] == 2 * self.batch
        if not self._last.same([sample]):
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
        known = (self._combined, self._first_bad, self._predict.seeds, noise)
        update(plan, plan.at(e), self._state, *known, checked=self._stepped)
        self._combined, self._stepped = EMPTY, True
        self.row += 1
        alpha = alphas[self.row]
        packed = self.net.pack(x if alpha == 1.0 else x / alpha)
        out = packed.to(sample.dtype, copy=packed is x)
        out = torch.cat([out, out]) if doubled else out
        self._last = Seen([out], self.settings.watched)
        return out

    def check(self) -> None:
        """Raise where the samples are not finite, at the step where they first were not; it waits
        for the device.

        Raises:
            fastguide.NonFiniteError: they are not.
        """
        if self.planned is not None and self._evaluate is not None:
            bad = (self._first_bad, self._evaluate.bad_gradient)
            check_finite(self.planned.plan, self._state[0], *bad, self._seeds)


def _drawn(model: Model, cond: Any, seeds: Tensor) -> Any:
    """`cond` with another label, or noise for its text; sizes and masks stay."""
    if not isinstance(cond, dict):
        return random_condition(model, cond, seeds)
    texts = {name: value for name, value in cond.items() if name in TEXTS}
    return {**cond, **random_condition(model, texts, seeds)}


def _place(timestep: Any, timesteps: list[float]) -> int:
    """Where among a scheduler's timesteps one of them is, or what a network is told for it."""
    time = float(torch.as_tensor(timestep).flatten()[0])
    for told in (time, 1000.0 * time):
        for number, one in enumerate(timesteps):
            if math.isclose(one, told, rel_tol=1e-5, abs_tol=1e-5):
                return number
    raise ValueError(
        f"the pipeline begins at the time {time}, which is none of its scheduler's: {timesteps}"
    )


def _half(half: int, leaf: Any) -> Any:
    rows = rows_of(leaf)
    return leaf if rows is None else narrowed(leaf, half * (rows // 2), rows // 2)


def _are(one: Any, other: Any) -> bool:
    """Whether two conditions, or two pairs of them, are the same objects."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(a is b for a, b in zip(one, other, strict=True))
    return one is other
