"""Schedules: what they give, and where."""

import pytest
import torch
from exact import PROCESSES

import fastguide as fg


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_an_interval_is_closed_where_levels_are_rounded(name):
    process = PROCESSES[name]
    levels = fg.Levels.from_sigmas(process, [9.0, 6.25, 2.0, 1.1, 0.5])
    for kind in ("sigma", "t"):
        ends = [p.ratio if kind == "sigma" else p.t for p in levels.points[1:4]]
        for nudge in (-1e-12, 0.0, 1e-12, 1e-7):
            low, high = ends[2] * (1 + nudge), ends[0] * (1 - nudge)
            values = fg.interval(low, high, over=kind).values(levels.points[:-1])
            assert values == [0.0, 1.0, 1.0, 1.0, 0.0], (kind, nudge)
    assert fg.interval(2.1, 6.2).values(levels.points[:-1]) == [0.0] * 5


def test_an_interval_in_a_run_of_a_vp_network():
    process, rows = fg.VP("scaled_linear", 0.00085, 0.012), []

    def net(x, t, c):
        rows.append(len(x))
        return 0.1 * x

    model = fg.Model(net, process, fg.Prediction("eps"), (1, 2, 2), null=torch.zeros(()))
    levels = fg.Levels.from_sigmas(process, [14.0, 6.25, 0.5])
    guidance = fg.CFG(3.0, schedule=fg.interval(1.0, 6.25))
    fg.sample(model, torch.ones(1), guidance, levels=levels)
    assert rows == [1, 2, 1]
