"""What `methods.py` measures: families of methods, each on a model and over its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import fastguide as fg

BOTH, CLASSES, NONE = (True, False), (True,), (False,)


@dataclass(frozen=True)
class Method:
    """A method over its weights.

    Args:
        make: the guidance of the other models, where there are any, and a weight.
        weights: weights or scales, as the method counts.
        conditions: with the classes as conditions, without any, or both.
        others: the folders of the other models, or of what judges noisy images.
    """

    make: Callable[..., fg.Guidance]
    weights: tuple[float, ...]
    conditions: tuple[bool, ...] = BOTH
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Methods to compare on one model, beside no guidance.

    Args:
        methods: by name; what stands before a comma is one line of the plot.
        model: name of a bundled model, or a folder.
        samples: of a point; a multiple of 100.
        in_turns: whether they take turns, batch by batch, so that their times compare; the plot
            is then of distances over times.
        front: whether the plot is of distances over the classifier's score.
        blind: without conditions, the guidance knows the classes all the same.
    """

    methods: dict[str, Method] = field(default_factory=dict)
    model: str = "fashion"
    samples: int = 300
    in_turns: bool = False
    front: bool = False
    blind: bool = False

    @property
    def conditions(self) -> tuple[bool, ...]:
        used = {c for method in self.methods.values() for c in method.conditions}
        return tuple(c for c in BOTH if c in used)


# as REG's poster has them; interval in sigma / alpha
SCHEDULES: dict[str, Callable[[float], fg.Guidance]] = {
    "constant": fg.CFG,
    "linear": lambda scale: fg.CFG(scale, fg.linear(1.0, 0.0)),
    "cosine": lambda scale: fg.CFG(scale, fg.cosine()),
    "interval": lambda scale: fg.CFG(scale, fg.interval(0.28, 2.9)),
}
SCALES = {
    "constant": (1.5, 2.0, 3.0),
    "linear": (2.0, 3.0, 5.0),
    "cosine": (2.0, 3.0, 5.0),
    "interval": (1.5, 2.0, 3.0),
}


def by_names(pair: fg.TextImage, weight: float) -> fg.Guidance:
    """CLIP guidance to the name of each sample's class."""
    names = pair.text(pair.class_names)
    return fg.CLIPGuidance(pair.image, names.__getitem__, weight, pair.logit_scale)


FAMILIES = {
    "perturbation": Family(
        {
            "PAG": Method(fg.PAG, (0.5, 1.0, 2.0)),
            "SEG": Method(fg.SEG, (0.5, 1.0, 2.0)),
            "SAG": Method(fg.SAG, (0.2, 0.5, 1.0)),
            "SLG": Method(fg.SLG, (0.25, 0.5, 1.0)),
            "TPG": Method(lambda weight: fg.TPG(weight, layers=[1, 2]), (0.25, 0.5, 1.0)),
            "NAG": Method(fg.NAG, (2.0, 3.0, 5.0), CLASSES),
            "CFG": Method(fg.CFG, (1.25, 1.5, 2.0), CLASSES),
        },
        samples=500,
    ),
    "autoguidance": Family(
        {
            "weak: less trained": Method(
                fg.AutoGuidance, (1.5, 2.0, 3.0), BOTH, ("bench/models/fashion-weak",)
            ),
            "weak: smaller": Method(fg.AutoGuidance, (1.5, 2.0, 3.0), BOTH, ("out/small",)),
            "CFG": Method(fg.CFG, (1.5,), CLASSES),
        }
    ),
    "icg": Family(
        {
            "ICG": Method(fg.ICG, (1.5, 2.0, 3.0), CLASSES),
            "CFG": Method(fg.CFG, (1.5, 2.0, 3.0), CLASSES),
        },
        model="out/nodrop",
    ),
    "tsg": Family(
        {
            f"strength {strength:g}": Method(
                lambda scale, strength=strength: fg.TSG(scale, strength),
                (1.5, 2.0, 3.0),
                NONE,
            )
            for strength in (0.3, 1.0)
        },
        model="out/eps",
    ),
    "sims": Family({"SIMS": Method(fg.SIMS, (0.5, 1.0, 1.5), BOTH, ("out/sims",))}),
    "every": Family(
        {
            f"{name}, every {k}": Method(
                lambda weight, kind=kind, k=k: kind(weight, every=k), (weight,), conditions
            )
            for name, kind, weight, conditions in (
                ("CFG", fg.CFG, 1.5, CLASSES),
                ("PAG", fg.PAG, 0.5, BOTH),
            )
            for k in (1, 2, 3, 4)
        },
        in_turns=True,
    ),
    "gradients": Family(
        {
            "classifier": Method(
                fg.ClassifierGuidance, (1.0, 2.0, 4.0), BOTH, ("out/noisy-classifier",)
            ),
            "CLIP": Method(by_names, (1.0, 3.0, 10.0), BOTH, ("out/clip",)),
        },
        blind=True,
    ),
    "reg": Family(
        {
            f"{name}{schedule}": Method(
                lambda scale, make=make, schedule=schedule: make(SCHEDULES[schedule](scale)),
                SCALES[schedule],
                CLASSES,
            )
            for schedule in SCALES
            for name, make in (("CFG, ", lambda one: one), ("REG, ", fg.REG))
        },
        front=True,
    ),
}
