"""Exact models, and runs of a plan in double precision, for the tests."""

from __future__ import annotations

import torch

import fastguide as fg
from fastguide import reference
from fastguide.engine.plan import make_plan
from fastguide.nets import GaussianMixture

PROCESSES = {
    "vp": fg.VP("cosine"),
    "edm": fg.EDM(sigma_min=0.02, sigma_max=20.0),
    "flow": fg.Flow(),
}


def prediction_for(process):
    """The prediction that the field uses on each process."""
    return fg.Prediction(
        {"VP": "eps", "EDM": "edm", "Flow": "flow"}[type(process).__name__], sigma_data=0.5
    )


def two_classes(process, prediction=None, heads=1, shape=(2, 4, 4), negative=False):
    """A model of two classes with known scores: an exact stand-in for a trained network."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    prediction = prediction or prediction_for(process)
    net = GaussianMixture(
        means, [0.4, 0.5, 0.6, 0.3], [0.2, 0.3, 0.3, 0.2], process, prediction, [0, 0, 1, 1], heads
    )
    return fg.Model(
        net,
        process,
        prediction,
        shape,
        null=2,
        heads=heads,
        negative=negative,
        class_names=("a", "b"),
    )


def run_in_fp64(levels, solver, net, prediction, start):
    """A plan's own rows in double precision, one step of the reference at a time.

    `start` [B, *shape] is the unit noise; draws come from `reference.noise` of seed i for sample i.
    """
    plan = make_plan(prediction, levels, solver, dtype=torch.float64)
    batch, shape = start.shape[0], start.shape[1:]
    state = torch.zeros(len(plan.slots), *start.shape, dtype=torch.float64)
    seeds = torch.arange(batch)
    for e, row in enumerate(plan.rows):
        branches = []
        if row.at is not None:
            scaled = prediction.input_scale(row.at) * state[0]
            branches = [net(scaled, plan.times[e].expand(batch))]
        noise = start if e == 0 else None
        if e and row.draws:
            noise = reference.noise(seeds, e, start[0].numel()).view(batch, *shape)
        new, _ = reference.step(
            state, branches, plan.weights[e], plan.table[e], noise, extra=row.extra
        )
        for slot in range(len(plan.slots)):
            if row.writes >> slot & 1:
                state[slot] = new[slot]
    return state[0]
