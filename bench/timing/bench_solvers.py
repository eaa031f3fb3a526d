"""What each solver costs beside the network: whole runs of the bundled model against the bare
forwards that they need."""

from __future__ import annotations

import pytest
import torch
from forwards import bare_forwards

import fastguide as fg
from fastguide.solvers import SOLVERS

BATCH, STEPS = 64, 4


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_time_outside_the_network(ratio, name):
    model = fg.load("fashion")
    solver = SOLVERS[name](inner=2) if name == "annealed_langevin" else SOLVERS[name]
    levels = fg.karras(sigma_max=20.0, sigma_min=0.05).run(model.process, STEPS)
    sampler = fg.Sampler(model, fg.Superconditioning(2.0), solver, levels=levels)
    labels = torch.arange(BATCH) % 10
    forwards = bare_forwards(model, sampler.plan, labels)
    what = f"{name}, batch {BATCH}, against its bare forwards"
    ratio(what, lambda: sampler(labels, range(BATCH)), forwards, limit=1.05, rounds=5)
