"""A guided pipeline: a pipeline of the same class, with the same components, whose calls are ours.

A call works on a shallow copy of it, in which network and scheduler are ours (`standins`). All
state of a run lives there. What the copy is given is read on the pipeline after the call; what is
set on the pipeline meanwhile reaches the copy.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from fastguide.adapters.diffusers.cache import Cache
from fastguide.adapters.diffusers.draws import draws_of
from fastguide.adapters.diffusers.families import NONE, Family, Habits
from fastguide.adapters.diffusers.relay import is_patched
from fastguide.adapters.diffusers.run import Run, Settings
from fastguide.adapters.diffusers.scales import Scale, cfg_terms, guided, is_on
from fastguide.adapters.diffusers.standins import network_of, original, scheduler_of
from fastguide.guidance.base import Guidance

NEGATIVE = 2.0  # any value of a pipeline's guidance scale that makes it run negative rows
KEPT_GUIDANCES = 8  # of other scales in the call
PARTS = "_fastguide"
CALLBACKS = ("callback_on_step_end", "callback")


class Parts:
    """What a guided pipeline, or its copy for a run, holds of ours.

    Args:
        options: of `torch.compile`, or None.
        check: whether samples that are not finite are an error.
        cache: what its runs share.
        habits: whether the pipeline's own habits beside its scale are kept.
    """

    def __init__(
        self,
        family: Family,
        guidance: Guidance | None,
        options: Mapping[str, Any] | None,
        check: bool,
        cache: Cache | None = None,
        habits: bool = True,
    ) -> None:
        self.family, self.guidance, self.options, self.check = family, guidance, options, check
        self.habits = habits
        self.cache = Cache(options) if cache is None else cache
        self.live: list[Any] = []  # the copies whose runs go on
        self.run: Run | None = None  # of a copy
        self.owner: Any = None  # of a copy: the pipeline it is of
        self._guidances: dict[Any, Guidance | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Parts, (
            *(self.family, self.guidance, self.options, self.check),
            *(None, self.habits),
        )

    def guidance_of(
        self, scale: Scale | None, rescale: float, habits: Habits = NONE
    ) -> Guidance | None:
        """That of a call; the same object for the same call."""
        habits = habits if self.habits else NONE
        key = (scale, rescale, habits)
        if key not in self._guidances:
            for old in list(self._guidances)[: -KEPT_GUIDANCES + 1]:
                self._guidances.pop(old, None)
            name = self.family.scale or "guidance_scale"
            found = guided(self.guidance, name, scale, rescale, self.family.lacks)
            self._guidances[key] = habits.kept(self.family, found)
        return self._guidances[key]


class Guided:
    """What a guided pipeline is beside its own class."""

    _fastguide: Parts
    fastguide_class: type  # the original's

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.fastguide_class(*args, **kwargs)  # who makes one anew makes an ordinary one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = _signature(type(self).fastguide_class).bind_partial(self, *args, **kwargs)
        run, view = self._begin(given)
        known = dict(view.__dict__)
        live = self._fastguide.live
        live.append(view)
        try:
            output = self.fastguide_class.__call__(view, *given.args[1:], **given.kwargs)
            if self._fastguide.check:
                run.check()
            return output
        finally:
            live.remove(view)
            self._read_back(view, known)

    def _begin(self, given: inspect.BoundArguments) -> tuple[Run, Any]:
        """A run for the call's arguments, which are made what the pipeline's own call is to be
        given, and the copy of the pipeline that it runs on.
        """
        parts, family = self._fastguide, self._fastguide.family
        inner = original(getattr(self, family.net))
        distilled = is_distilled(inner, family, self)
        scale, rescale = _asked(given, family, parts.guidance, distilled)
        habits = habits_of(given, family)
        second, of_second = self._second(given, scale)
        if inner is None:  # all levels are the second network's
            inner = second
        view = object.__new__(type(self))
        settings = Settings(
            family,
            parts.guidance_of(scale, rescale, habits),
            draws_of(given.arguments),
            any(given.arguments.get(name) is not None for name in CALLBACKS),
            (lambda: view.__dict__.get("_guidance_scale"))
            if family.scale == "guidance_scale" and not distilled
            else lambda: None,
            second,
            None if second is None else parts.guidance_of(of_second, rescale, habits),
            rows_of(family, given),
        )
        scheduler = scheduler_of_run(original(self.scheduler))  # type: ignore[attr-defined]
        run = Run(inner, scheduler, settings, parts.cache)
        check_negative(run, self.fastguide_class.__name__, distilled)
        _set_scale(given, scale, run, distilled)
        view.__dict__.update(self.__dict__)
        if original(self.__dict__.get(family.net)) is not None:
            view.__dict__[family.net] = network_of(inner, run)
        if family.second is not None and second is not None:
            view.__dict__[family.second[0]] = network_of(second, run)
        view.__dict__["scheduler"] = scheduler_of(scheduler, run)
        known = (family, parts.guidance, parts.options, parts.check, parts.cache, parts.habits)
        mine = Parts(*known)
        mine.run, mine.owner = run, self
        view.__dict__[PARTS] = mine
        return run, view

    def _second(
        self, given: inspect.BoundArguments, scale: Scale | None
    ) -> tuple[Any, Scale | None]:
        """The network of the levels below the pipeline's boundary, and its scale, which is the
        call's where it has no other.
        """
        family = self._fastguide.family
        if family.second is None:
            return None, None
        net, own = (
            original(getattr(self, family.second[0], None)),
            given.arguments.get(family.second[1]),
        )
        return net, scale if own is None else family.ours(float(own))

    def _read_back(self, view: Any, known: dict[str, Any]) -> None:
        """What the call has left, which is what a call of the original leaves on it."""
        family = self._fastguide.family
        ours = (family.net, "scheduler", PARTS, *(family.second or ())[:1])
        for name, value in view.__dict__.items():
            if name not in ours and value is not known.get(name, known):
                self.__dict__[name] = value
        net = original(view.__dict__.get(ours[0]))
        if net is not original(known.get(ours[0])):
            self.__dict__[ours[0]] = net

    def __setattr__(self, name: str, value: Any) -> None:
        parts = self.__dict__[PARTS]
        if parts.run is not None:
            self._set_in_run(name, value)
            return
        super().__setattr__(name, value)
        if name in (parts.family.net, "scheduler"):
            parts.cache.forget()
            return
        for view in list(parts.live):
            view.__dict__[name] = value

    def _set_in_run(self, name: str, value: Any) -> None:
        """On a run's copy, as a callback does."""
        family = self._fastguide.family
        if name in (family.net, "scheduler"):
            raise ValueError(
                f"a callback replaces {name} while the pipeline runs, which a guided run does not "
                "follow; replace it on the pipeline, before the call"
            )
        super().__setattr__(name, value)

    @property
    def components(self) -> dict[str, Any]:
        """The pipeline's own, never what stands in their place."""
        found = super().components  # type: ignore[misc]
        return {name: original(one) for name, one in found.items()}

    def maybe_free_model_hooks(self) -> None:
        """On the pipeline itself, whose hooks they are."""
        owner = self._fastguide.owner
        if owner is not None:
            owner.maybe_free_model_hooks()
            return
        super().maybe_free_model_hooks()  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        parts = self._fastguide
        fresh = Parts(parts.family, parts.guidance, parts.options, parts.check, habits=parts.habits)
        state = {name: original(value) for name, value in self.__dict__.items()}
        return _empty, (self.fastguide_class,), {**state, PARTS: fresh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def like(pipe: Any, parts: Parts) -> Any:
    """A guided pipeline of what `pipe` holds."""
    made = _empty(type(pipe))
    made.__dict__.update(pipe.__dict__)
    made.__dict__[PARTS] = parts
    return made


def _empty(kind: type) -> Any:
    return object.__new__(_class(kind))


@functools.cache
def _class(kind: type) -> type:
    known: dict[str, Any] = {"__module__": kind.__module__, "fastguide_class": kind}
    own = getattr(kind, "guidance_scale", None)
    if isinstance(own, property):
        known["guidance_scale"] = property(functools.partial(_scale, own))
    return type(kind.__name__, (Guided, kind), known)


def _scale(own: property, pipe: Any) -> Any:
    """The guidance scale in force: in a run of one scale for each step that of this step."""
    run = pipe._fastguide.run
    found = None if run is None else run.in_force
    assert own.fget is not None
    return own.fget(pipe) if found is None else found


@functools.cache
def _signature(kind: type) -> inspect.Signature:
    return inspect.signature(kind.__call__)


def is_distilled(net: Any, family: Family, pipe: Any) -> bool:
    """Whether the network is told `guidance_scale`, or needs none, so that its pipeline runs no
    negative rows.
    """
    if family.distilled is not None and pipe.config.get(family.distilled):
        return True
    told = getattr(net.config, "time_cond_proj_dim", None) is not None
    return told and family.scale == "guidance_scale"


def rows_of(family: Family, given: inspect.BoundArguments) -> int:
    """How many rows a pipeline runs for each sample, where it combines them itself."""
    if family.why_relayed is None:
        return 1
    scale, other = (
        given.arguments.get(name, given.signature.parameters[name].default)
        for name in ("guidance_scale", "image_guidance_scale")
    )
    return 3 if scale > 1.0 and other >= 1.0 else 1


def check_negative(run: Run, kind: str, distilled: bool) -> None:
    """Raise where the guidance needs what the pipeline does not have."""
    own = run.settings.family.why_relayed
    if own is not None and run.needs_negative:
        raise ValueError(
            f"guidance is {run.guidance!r}, which needs a negative condition, but the pipeline is "
            f"a {kind}, and {own}: give guidance_scale and image_guidance_scale in the call, and "
            "only what has no negative condition here, such as PAG"
        )
    if run.needs_negative and run.settings.family.scale is None:
        raise ValueError(f"guidance needs a negative condition, but a {kind} has none")
    if "null" in run.names:
        raise ValueError(
            "guidance needs a null condition beside the negative one, which pipelines do not make"
        )
    if run.needs_negative and distilled:
        raise ValueError(
            "guidance needs a negative condition, but the network has its guidance built in "
            "(time_cond_proj_dim), and its pipeline runs no negative rows"
        )


def scheduler_of_run(scheduler: Any) -> Any:
    """A copy, so that runs do not meet; one whose methods were replaced is used as it is."""
    return scheduler if is_patched(scheduler) else copy.deepcopy(scheduler)


def _asked(
    given: inspect.BoundArguments, family: Family, base: Guidance | None, distilled: bool
) -> tuple[Scale | None, float]:
    """The guidance scale that the call sets, None where it sets none; and its rescale."""
    arguments, parameters = given.arguments, given.signature.parameters
    for name in family.refused:
        if arguments.get(name):
            raise ValueError(f"{name} is {arguments[name]}, which fastguide does not support")
    scale: Any = None
    if family.scale is not None and not distilled:
        default = parameters[family.scale].default if base is None else None
        scale = arguments.get(family.scale, default)
    if isinstance(scale, (list, tuple)):
        scale = tuple(family.ours(float(one)) for one in scale)
        if not scale:
            raise ValueError(f"{family.scale} is empty, but it should hold a scale for each step")
    elif scale is not None:
        scale = family.ours(float(scale))
    if scale is not None and family.asks and not is_told_negative(arguments):
        scale = None if base is None else scale  # as in the original, which then has no CFG
    rescale = arguments.get("guidance_rescale")
    return scale, float(rescale or 0.0)


def is_told_negative(arguments: Mapping[str, Any]) -> bool:
    """Whether the call has a negative prompt."""
    return any(arguments.get(f"negative_prompt{one}") is not None for one in ("", "_embeds"))


def habits_of(given: inspect.BoundArguments, family: Family) -> Habits:
    """What the call asks of the pipeline's habits."""

    def value(name: str) -> Any:
        default = given.signature.parameters[name].default
        return given.arguments.get(name, default)

    norm = True
    if family.norm is not None and family.norm.asks is not None:
        norm = value(family.norm.asks)
    cut = None if family.cut is None else value(family.cut[0])
    return Habits(norm, 1.0 if cut is None else float(cut))


def _set_scale(
    given: inspect.BoundArguments, scale: Scale | None, run: Run, distilled: bool
) -> None:
    """Make the pipeline run negative rows where the guidance needs them."""
    family, arguments = run.settings.family, given.arguments
    if family.scale is None or distilled:
        return
    told = scale if isinstance(scale, float) else _number(run.settings.guidance)
    value = 1.0 if told is None or is_on(told) else told
    if run.needs_negative:
        value = told if told is not None and is_on(told) else NEGATIVE
    arguments[family.scale] = (
        tuple(map(family.theirs, value)) if isinstance(value, tuple) else family.theirs(value)
    )
    if family.asks and run.needs_negative and not is_told_negative(arguments):
        if arguments.get("prompt") is None:
            raise ValueError(
                "negative_prompt_embeds is None, but guidance needs a negative condition"
            )
        arguments["negative_prompt"] = ""
    given.arguments = {
        name: arguments[name] for name in given.signature.parameters if name in arguments
    }


def _number(guidance: Guidance | None) -> float | None:
    """The scale of the guidance's one CFG term, where it is a number."""
    terms = cfg_terms(guidance)
    if len(terms) != 1 or not isinstance(terms[0].scale, (int, float)):
        return None
    return float(terms[0].scale)
