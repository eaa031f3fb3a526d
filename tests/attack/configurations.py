"""Random configurations of a run, as Hypothesis draws and shrinks them: names and numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import exact
import torch
from hypothesis import strategies as st
from methods import LAYERED, PLAIN, layered
from test_perturbation import dit, model_of

import fastguide as fg
from fastguide.process import ContinuousVP
from fastguide.solvers import SOLVERS as KNOWN

PROCESSES = {
    "vp": fg.VP("cosine"),
    "vp linear": fg.VP("linear"),
    "vp zero": fg.VP("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True),
    "edm": fg.EDM(0.02, 20.0),
    "vp continuous": ContinuousVP(),
    "flow": fg.Flow(),
}
SHAPES = [(2, 4, 4), (1, 5, 7), (3, 2, 2), (8,), (2, 6), (1, 1, 1), (2, 2, 3, 2)]
SCHEDULES = {
    "interval": fg.interval(0.3, 3.0),
    "late": fg.interval(0.5, 1.0, over="step"),
    "never": fg.interval(1e5, 1e6),
    "linear": fg.linear(0.2, 1.0),
    "falling": fg.linear(1.0, -0.5, over="step"),
    "cosine": fg.cosine(2.0),
    "function": lambda level: level.alpha,
}
WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 3.5, -0.5, 40.0)  # which fp32 holds exactly
SOLVERS = [
    *sorted(KNOWN),
    "annealed_langevin:inner=2",
    "ddim:eta=1",
    "ddim:eta=0.5,rederive=false",
    "ddpm:variance=large",
    "deis:order=2",
    "dpm_2m:solver_type=heun",
    "dpm_3m:published=true",
    "dpmpp_2m:lower_order_final=true",
    "euler:churn=2",
    "heun:over=ratio,churn=3",
    "lms:order=2",
    "plms:warmup=false",
    "predictor_corrector:corrections=2",
    "resampled:times=2,jump=2",
    "restart:times=2,steps=2",
    "unipc:order=3,variant=bh1",
    "unipc:corrector=false",
]
SPACINGS = {
    "edm": ["karras", "karras:rho=3", "exponential", "polyexponential", "linspace", "beta"],
    "flow": ["karras", "linspace", "shifted", "shifted:shift=5", "shifted_by_size:tokens=64"],
    "vp": ["karras", "leading", "trailing", "linspace", "quadratic", "respaced", "beta"],
}
SPACINGS["vp"] += ["polyexponential", "sgm_uniform", "leading:offset=1"]
PREDICTIONS = {"vp": ["eps", "x0", "v", "edm"], "vp zero": ["v", "x0"], "edm": ["edm", "eps", "x0"]}
PREDICTIONS |= dict.fromkeys(("vp linear", "vp continuous"), PREDICTIONS["vp"])
PREDICTIONS |= {"flow": ["flow", "v", "x0"]}
MODIFIED = ("rescale", "rescale, denoised", "apg", "zero star", "tcfg", "mambo", "adaptive", "reg")
MODIFIED += ("reg, chain", "fdg")
CLAMPS = (None, None, 1.0, (-0.5, 2.0), fg.DynamicThreshold(0.9))
DTYPES = (None, None, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Term:
    """One guidance: its method, a weight for all samples or one for each, and its schedule."""

    method: str
    weights: tuple[float, ...]
    schedule: str | None
    every: int

    def made(self, batch: int, only: int | None = None) -> fg.Guidance:
        """The guidance of `batch` samples, or that of one of them alone."""
        per_sample = len(self.weights) > 1
        weight: Any = self.weights[only if per_sample and only is not None else 0]
        if per_sample and only is None:
            weight = torch.tensor(self.weights[:batch])
        options: dict[str, Any] = {}
        if self.schedule is not None:
            options["schedule"] = SCHEDULES[self.schedule]
        if self.every > 1 and self.method != "nag":
            options["every"] = self.every
        return {**PLAIN, **LAYERED}[self.method](weight, **options)


@dataclass(frozen=True)
class Configuration:
    """A run: what `fastguide.sample` takes, by names. `layers`: of a network that has some."""

    layers: bool
    process: str
    prediction: str
    shape: tuple[int, ...]
    heads: int
    terms: tuple[Term, ...]
    modifier: str | None
    solver: str
    spacing: str | None
    steps: int
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    negative: int | None
    clamp: int
    dtype: int

    @property
    def model(self) -> fg.Model:
        """What is sampled: an exact model, sample by sample in fp64, or a small DiT in fp32."""
        process = PROCESSES[self.process]
        prediction = fg.Prediction(self.prediction)
        if not self.layers:
            return exact.two_classes(process, prediction, self.heads, self.shape)
        if (self.process, self.prediction) == ("flow", "flow"):
            return layered()
        return model_of(dit(), (2, 8, 8), process, self.prediction)

    def guidance(self, only: int | None = None) -> fg.Guidance | None:
        """The sum of the terms, modified; of one sample `only`, or of all."""
        parts = [term.made(len(self.seeds), only) for term in self.terms]
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total if self.modifier is None else MODIFIERS[self.modifier](total)

    def sampler(self, only: int | None = None, **other: Any) -> fg.Sampler:
        """The sampler of all, or of one sample; with other arguments."""
        given = {
            "model": None if "model" in other else self.model,
            "guidance": None if "guidance" in other else self.guidance(only),
            "solver": self.solver,
            "steps": self.steps,
            "spacing": self.spacing,
            "clamp": CLAMPS[self.clamp],
            "dtype": DTYPES[self.dtype],
        }
        return fg.Sampler(**{**given, **other})

    def call(self, only: int | None = None) -> dict[str, Any]:
        """The arguments of the sampler's call."""
        which = slice(None) if only is None else slice(only, only + 1)
        labels = None if self.labels is None else list(self.labels[which])
        return {"cond": labels, "seeds": list(self.seeds[which]), "negative": self.negative}


MODIFIERS = {
    "rescale": lambda g: g.rescale(0.7),
    "apg": lambda g: fg.APG(g, radius=2.0),
    "tcfg": lambda g: fg.TCFG(g),
    "zero star": lambda g: fg.CFGZeroStar(g),
    "adaptive": lambda g: fg.Adaptive(g, 0.9),
    "reg": lambda g: fg.REG(g, every=2),
}


@st.composite
def terms(draw: Any, names: list[str], batch: int) -> Term:
    """A guidance of `batch` samples."""
    one = st.tuples(st.sampled_from(WEIGHTS))
    each = st.tuples(*[st.sampled_from(WEIGHTS)] * batch)
    return Term(
        draw(st.sampled_from(names)),
        draw(st.one_of(one, each)),
        draw(st.sampled_from([None, None, *SCHEDULES])),
        draw(st.sampled_from((1, 1, 1, 2, 3))),
    )


@st.composite
def configurations(draw: Any) -> Configuration:
    """A configuration, of which most can run."""
    layers = draw(st.integers(0, 3)) == 3
    batch = draw(st.integers(1, 4))
    modifier = draw(st.sampled_from([None, None, None, *MODIFIERS]))
    names = [one for one in PLAIN if modifier is None or one not in MODIFIED]
    names += LAYERED if layers else ()
    process = draw(st.sampled_from(list(PROCESSES)))
    solver = draw(st.sampled_from(SOLVERS))
    predictions = ["consistency"] if solver == "consistency" else PREDICTIONS[process]
    spacings = SPACINGS[process.split()[0]]
    # now and then what does not go together
    anything = draw(st.integers(0, 9)) == 9
    if anything:
        predictions = ["eps", "x0", "v", "flow", "edm"]
        spacings = [name for names_ in SPACINGS.values() for name in names_]
    seeds = st.integers(0, 2**63 - 1)
    return Configuration(
        layers,
        process,
        draw(st.sampled_from([predictions[0], *predictions])),
        draw(st.sampled_from(SHAPES)),
        draw(st.sampled_from((1, 1, 2))),
        tuple(draw(st.lists(terms(names, batch), max_size=3))),
        modifier,
        solver,
        draw(st.sampled_from([None, None, *spacings])),
        draw(st.integers(1, 6)),
        tuple(draw(st.lists(seeds, min_size=batch, max_size=batch))),
        draw(st.one_of(st.none(), st.tuples(*[st.integers(0, 1)] * batch))),
        draw(st.sampled_from((None, None, 0, 1))),
        draw(st.integers(0, len(CLAMPS) - 1)),
        draw(st.integers(0, len(DTYPES) - 1)),
    )
