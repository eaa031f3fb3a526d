"""Every guidance method by a name, as a function of its weight: 0 is off, whatever its scale is."""

from __future__ import annotations

from functools import cache

import torch
from test_others import weak_dit
from test_perturbation import dit, model_of

import fastguide as fg


def energy(x, t):
    """A potential of each sample alone."""
    return x.square().flatten(1).sum(1)


def classifier(x, t):
    """Logits of two classes."""
    return torch.stack([x.flatten(1).sum(1), x.flatten(1).square().sum(1)], 1)


@cache
def layered():
    """A network of layers, without a test's right to change it."""
    return model_of(dit())


@cache
def weak():
    """Another network."""
    return model_of(weak_dit())


# of a network with layers; what these take besides the weight: schedule, every
LAYERED = {
    "pag": lambda s, **o: fg.PAG(s, **o),
    "pag of negative": lambda s, **o: fg.PAG(s, of="negative", **o),
    "seg": lambda s, **o: fg.SEG(s, **o),
    "seg, blurred": lambda s, **o: fg.SEG(s, sigma=1.5, **o),
    "slg": lambda s, **o: fg.SLG(s, **o),
    "stg": lambda s, **o: fg.STG(s, mode="attention", **o),
    "tpg": lambda s, **o: fg.TPG(s, **o),
    "sag": lambda s, **o: fg.SAG(s, **o),
    "sag, random": lambda s, **o: fg.SAG(s, mask="random", **o),
    "tsg": lambda s, **o: fg.TSG(1.0 + s, **o),
    "nag": lambda s, **o: fg.NAG(1.0 + s, **o),
    "autoguidance": lambda s, **o: fg.AutoGuidance(weak(), 1.0 + s, **o),
    "sims": lambda s, **o: fg.SIMS(weak(), s, **o),
    "icg": lambda s, **o: fg.ICG(1.0 + s, **o),
}
# of any network
PLAIN = {
    "cfg": lambda s, **o: fg.CFG(1.0 + s, **o),
    "held": lambda s, **o: fg.CFG(1.0 + s, **{"every": 3, **o}),
    "interval": lambda s, **o: fg.CFG(1.0 + s, **{"schedule": fg.interval(0.3, 3.0), **o}),
    "fdg": lambda s, **o: fg.FDG(1.0 + s, 1.0 + 2 * s, **o),
    "rescale": lambda s, **o: fg.CFG(1.0 + s, **o).rescale(0.7),
    "rescale, denoised": lambda s, **o: (fg.CFG(1.0 + s, **o) + fg.ICG(1.0 + s, **o)).rescale(
        1.0, "denoised"
    ),
    "apg": lambda s, **o: fg.APG(fg.CFG(1.0 + s, **o), radius=2.0, momentum=-0.5),
    "zero star": lambda s, **o: fg.CFGZeroStar(fg.CFG(1.0 + s, **o)),
    "tcfg": lambda s, **o: fg.TCFG(fg.CFG(1.0 + s, **o)),
    "mambo": lambda s, **o: fg.MAMBO(fg.CFG(1.0 + s, **o)),
    "adaptive": lambda s, **o: fg.Adaptive(fg.CFG(1.0 + s, **o), 0.5),
    "reg": lambda s, **o: fg.REG(fg.CFG(1.0 + s, **o)),
    "reg, chain": lambda s, **o: fg.REG(fg.CFG(1.0 + s, **o), "chain"),
    "energy": lambda s, **o: fg.EnergyGuidance(energy, 0.05 * s, **o),
    "energy of the image": lambda s, **o: fg.EnergyGuidance(
        energy, 0.05 * s, "denoised", **{"every": 2, **o}
    ),
    "classifier": lambda s, **o: fg.ClassifierGuidance(classifier, 0.05 * s, **o),
}
