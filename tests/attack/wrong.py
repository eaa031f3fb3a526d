"""Wrong arguments of everything public: for each argument, values that it cannot take.

The arguments are found by signatures, so that a new guidance, solver or spacing is attacked too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import exact
import torch
from methods import classifier, energy, layered
from torch import Tensor

import fastguide as fg
from fastguide import guidance, solvers, spacing
from fastguide.common.options import Configured
from fastguide.process import ContinuousVP

NAN, HUGE = math.nan, 10**400
THING = object()


def nothing() -> None:
    """A function that takes no argument."""


KINDS: list[Any] = ["x", b"3", [], {}, 3j, THING, nothing, fg.CFG, {1}, ["a"], torch.zeros(2, 2)]
NUMBERS = [NAN, HUGE, True, torch.tensor(NAN), *KINDS]
WHOLE = [NAN, 1.5, -5, True, HUGE * -1, *KINDS]
WORDS = ["nonsense", "", 3, 1.5, b"x", [], {}, THING, nothing]
SWITCHES = ["yes", 3, 1.5, [], {}, THING]
SCHEDULES = [0.5, "cosine", {}, THING, fg.interval, ["a"], [NAN], lambda at: "x", lambda at: NAN]
SCHEDULES += [lambda at: None, lambda at: HUGE, fg.CFG(2.0)]
LAYERS = ["nonsense", 99, 1.5, [], ["nonsense"], [99], THING, {}, b"mid", -99, [1.5]]
GUIDANCES = [3.0, "cfg", fg.CFG, [fg.CFG(1.0)], {}, THING, nothing, torch.zeros(2)]
MODELS = [3.0, "fashion", {}, THING, nothing, None]
FUNCTIONS = [3.0, "x", [], {}, THING, None]
SHAPES = [8, (2, 4.0, 4), (2,), (-2, 4, 4), (3, 4, 4), "abc", {}, THING, ("a",), (0, 4, 4), (True,)]
DEVICES = ["gpu", 0, "cuda:99", "meta", "mps", "xpu", "", THING, 3.5, []]
DTYPES = ["fp17", torch.int8, 3, torch.float64, THING, torch.complex64, float]
SEEDS = [-1, 1.5, "x", [None], [], 2**63, [-1], [1.5], torch.tensor([1.5]), torch.tensor([-1]), {}]
SEEDS += [THING, [[1]], torch.zeros(1, 1, dtype=torch.int64), b"3", HUGE, [HUGE], ["a"]]
CONDITIONS = ["red", [None], 1.0, 2**70, 99, -1, [0] * 7, THING, {"a": 1}, torch.zeros(1), [[0]]]
CONDITIONS += [torch.zeros(1, 1, dtype=torch.int64), torch.tensor([99]), b"x", [THING], ["a"], NAN]
TENSORS = [3.0, "x", [], {}, THING, torch.zeros(9, 9), torch.zeros(1), torch.zeros(2, dtype=int)]
BY_ANNOTATION = {
    # of a function of a level its own errors are told
    "Amount": [math.inf, torch.zeros(0), *(one for one in NUMBERS if one is not nothing)],
    "float": NUMBERS,
    "float | None": NUMBERS,
    "float | tuple[float, ...]": NUMBERS,
    "int": WHOLE,
    "int | None": WHOLE,
    "bool": SWITCHES,
    "str": WORDS,
    "Factor": SCHEDULES,
    "Guidance": GUIDANCES,
    "Model": MODELS,
    "Any": LAYERS,
}
REQUIRED = {  # of guidance, by the argument's name
    "guidance": fg.CFG(2.0),
    "scale": 2.0,
    "weight": 0.1,
    "low": 2.0,
    "high": 3.0,
    "classifier": classifier,
    "energy": energy,
    "weak": None,
    "auxiliary": None,
    "image_encoder": lambda x, t: x.flatten(1),
    "text_embedding": torch.ones(1, 128),
}
EXACT = exact.two_classes(fg.Flow())
TWO_HEADS = exact.two_classes(fg.Flow(), heads=2)
VP_MODEL = exact.two_classes(fg.VP("cosine"))
EDM = exact.two_classes(exact.PROCESSES["edm"])


@dataclass(frozen=True)
class Wrong:
    """One wrong argument: `make()` is to raise an error that names `name`."""

    where: str
    name: str
    value: Any
    make: Callable[[], Any]

    def __repr__(self) -> str:
        return f"{self.where}({self.name}={self.value!r:.60})"


def _guided(kind: Any, options: dict[str, Any]) -> Any:
    model = TWO_HEADS if kind is fg.Superconditioning else layered()
    return fg.sample(model, 0, kind(**options), steps=2)


def _configured(model: fg.Model, argument: str, one: Any, options: dict[str, Any]) -> Any:
    return fg.sample(model, 0, steps=4, **{argument: one(**options)})


def of_guidance() -> Iterator[Wrong]:
    """Every argument of every guidance."""
    for name in guidance.__all__:
        kind = getattr(fg, name)
        if not (isinstance(kind, type) and issubclass(kind, fg.Guidance)) or kind is fg.Guidance:
            continue
        parameters = inspect.signature(kind).parameters
        given = {
            key: layered() if key in ("weak", "auxiliary") else REQUIRED[key]
            for key, one in parameters.items()
            if one.default is inspect.Parameter.empty
        }
        for key, one in parameters.items():
            annotation = str(one.annotation).strip("'").removesuffix(" | None")
            values = BY_ANNOTATION.get(annotation, WORDS)
            if key in ("classifier", "energy", "image_encoder"):
                values = FUNCTIONS
            elif key == "layers":
                values = LAYERS
            elif key == "sigma":
                values = NUMBERS
            elif key in ("labels", "text_embedding"):
                values = [3.0, "x", {}, THING]
            elif key == "channels":
                values = [99, 1.5, "x", [99], [1.5], [-99], ["a"], THING, {}]
            for value in values:
                if value is None and one.default is None:
                    continue
                amount = {"weight": 0.1} if kind is fg.SLG else {}
                make = partial(_guided, kind, {**amount, **given, key: value})
                yield Wrong(f"fg.{name}", key, value, make)


def of_options() -> Iterator[Wrong]:
    """Every option of every solver and every spacing."""
    for module, argument in ((solvers, "solver"), (spacing, "spacing")):
        for name in module.__all__:
            one = getattr(fg, name, None)
            if not isinstance(one, Configured):
                continue
            for key, default in one.defaults.items():
                parameter = inspect.signature(one.function).parameters[key]
                values = BY_ANNOTATION.get(str(parameter.annotation), ["x", 3, {}, THING])
                if key == "sections":
                    values = [THING, {}, ["a"], [0], [-1], "nonsense", NAN, 3j]
                model = EDM if argument == "solver" else EXACT
                if name in ("karras", "exponential", "polyexponential"):
                    model = EDM
                if name in ("respaced", "leading", "restart", "ddim_stride"):
                    model = VP_MODEL
                for value in values:
                    if value is None and default is None:
                        continue
                    make = partial(_configured, model, argument, one, {key: value})
                    yield Wrong(f"fg.{name}", key, value, make)


MADE: list[tuple[Any, dict[str, Any], dict[str, list[Any]]]] = [
    (
        fg.VP,
        {},
        {
            "betas": ["nonsense", 3, THING, [], [0.5], {}, [NAN] * 1000, ["a"] * 1000],
            "beta_start": NUMBERS,
            "beta_end": NUMBERS,
            "timesteps": [*WHOLE, 0, 1],
            "zero_terminal_snr": SWITCHES,
        },
    ),
    (fg.EDM, {}, {"sigma_min": [*NUMBERS, -1.0], "sigma_max": [*NUMBERS, 0.0]}),
    (
        ContinuousVP,
        {},
        {
            **{key: [*NUMBERS, -1.0] for key in ("beta_min", "beta_max", "s_min", "scale")},
            "sub": SWITCHES,
        },
    ),
    (ContinuousVP().level, {}, {"t": [NAN, 1e4, "x", None, [], THING, HUGE]}),
    (
        fg.Prediction,
        {"name": "eps"},
        {"prediction": WORDS, "sigma_data": NUMBERS, "sigma_min": NUMBERS},
    ),
    (fg.constant, {}, {"value": NUMBERS}),
    (
        fg.linear,
        {"start": 0.0, "end": 1.0},
        {
            "start": NUMBERS,
            "end": NUMBERS,
            "over": WORDS,
            "span": [3, "x", (1,), (1, NAN), ("a", 1)],
        },
    ),
    (fg.cosine, {}, {"power": NUMBERS, "over": WORDS, "span": [3, "x", (1,), (1, 1), THING]}),
    (
        fg.interval,
        {"low": 0.0, "high": 1.0},
        {"low": NUMBERS, "high": NUMBERS, "over": WORDS},
    ),
    (
        fg.DynamicThreshold,
        {},
        {"quantile": [*NUMBERS, 0.0, 1.5], "floor": [*NUMBERS, math.inf, -1.0]},
    ),
    (
        fg.Model,
        {
            "net": EXACT.net,
            "process": fg.Flow(),
            "prediction": fg.Prediction("flow"),
            "shape": (2,),
        },
        {
            "net": FUNCTIONS,
            "process": [*WORDS, fg.Flow],
            "prediction": [*WORDS, fg.Prediction],
            "shape": [8, "abc", {}, THING, ("a",), (0,), (1.5,), (-1,), (), None, (True,)],
            "heads": [*WHOLE, 0, 3],
            "negative": SWITCHES,
            "variance": SWITCHES,
            "class_names": [3, THING, [3], (None,)],
            "usual": [3, "x", [], {}],
            "layers": [3, 1.5, THING, {}, "nonsense", ["nonsense"], b"x", [3]],
        },
    ),
    (
        fg.Levels.from_times,
        {"process": fg.Flow()},
        {"times": [3, None, ["a"], [NAN], [], [2.0], [0.0], [0.5, 0.7], THING, [None], [HUGE]]},
    ),
    (
        fg.Levels.from_sigmas,
        {"process": fg.EDM()},
        {"sigmas": [3, None, ["a"], [NAN], [], [-1.0], [0.0], [0.5, 0.7], THING, [None], [HUGE]]},
    ),
    (fg.Flow().level, {}, {"t": [NAN, 2.0, -1.0, "x", None, [], THING, HUGE]}),
    (fg.EDM().level, {}, {"t": [NAN, -1.0, "x", None, [], THING, HUGE]}),
    (fg.VP().level, {}, {"t": [NAN, -1.0, 1e4, "x", None, [], THING, HUGE]}),
    (
        fg.noise,
        {"seeds": [1], "shape": (2,)},
        {
            "seeds": [s for s in SEEDS if not isinstance(s, Tensor)],
            "shape": [8.5, "abc", {}, THING, (-1,), (1.5,), ("a",), None],
        },
    ),
    (fg.load, {}, {"model": ["nonsense", 3, None, THING, "", b"x", [], "\0"]}),
    (fg.grey, {}, {}),
    (fg.pooled, {}, {"factor": [*WHOLE, 0]}),
]


def of_constructors() -> Iterator[Wrong]:
    """Processes, schedules, models and the rest."""
    for make, given, wrong in MADE:
        first = next(iter(inspect.signature(make).parameters), None)
        for name, values in wrong.items():
            key = first if name not in inspect.signature(make).parameters else name
            for value in values:
                yield Wrong(make.__name__, name, value, partial(make, **{**given, key: value}))


SAMPLER: dict[str, list[Any]] = {
    "model": MODELS,
    "guidance": GUIDANCES,
    "steps": [*WHOLE, 0, HUGE],
    "clamp": [NAN, "1", (1, "a"), (2, 1), [], {}, THING, 0.0, (NAN, 1), (1, 2, 3), True, -1.0],
    "dtype": DTYPES,
    "shape": SHAPES,
    "device": DEVICES,
    "levels": [[1.0, 0.5], "x", 3, {}, THING, fg.Levels],
    "spacing": [3, "even", [], THING, {}, "karras:rho", "karras:rho=a b", "shifted:x=1", ""],
    "solver": [3, "ode", [], THING, {}, "ddim:eta", "ddim:eta=a b", "ddim:x=1", "", fg.Levels],
    "rows": ["all", 3, [], THING],
    "max_batch": [*WHOLE, 0],
    "max_wait": [*NUMBERS, -1.0],
    "graph": ["maybe", 3, True, "whole", None, []],
    "max_captures": [*WHOLE, 0],
    "fallback": SWITCHES,
    "strength": [NAN, -1.0, 2.0, "x", [], THING, True, 0.0, HUGE],
}
CALL: dict[str, list[Any]] = {
    "seeds": SEEDS,
    "cond": CONDITIONS,
    "negative": CONDITIONS,
    "noise": TENSORS,
    "step_noise": [3.0, "x", THING, [3.0], [torch.zeros(9)], {}, torch.zeros(1)],
    "callback": [3, "x", [], {}],
    "check": SWITCHES,
    "init": [3.0, "x", THING, torch.zeros(9, 9)],
    "known": TENSORS,
    "mask": TENSORS,
    "measurement": [3, "grey", [], THING],
}
SPOILED = [("sampler", name, value) for name, values in SAMPLER.items() for value in values]
SPOILED += [("call", name, value) for name, values in CALL.items() for value in values]
CASES = [*of_guidance(), *of_options(), *of_constructors()]
