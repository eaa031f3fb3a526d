"""Runs of the bundled model beside a plain loop around its network, both compiled and eager: CFG,
ten steps. What a call costs whatever its size shows at batch 1.

    pytest bench/timing/bench_compile.py --base none
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastguide as fg

SCALE, STEPS = 3.0, 10


@pytest.fixture(scope="module")
def model():
    return fg.load("fashion")


def plain_loop(model: fg.Model, net: Callable[..., Tensor], batch: int) -> Callable[[], Tensor]:
    """Euler for flow with CFG, as one writes it: both rows in one batch."""
    labels = torch.arange(batch) % 10
    null = torch.full((batch,), model.null)
    cond = (torch.cat([labels, null]), torch.cat([null, null]))
    levels = fg.Sampler(model, fg.CFG(SCALE), steps=STEPS).plan.levels
    channels = model.shape[0]

    @torch.no_grad()
    def loop() -> Tensor:
        x = fg.noise(range(batch), model.shape)
        for now, to in levels.steps():
            t = torch.full((2 * batch,), now.t)
            positive, negative = net(torch.cat([x, x]), t, cond)[:, :channels].chunk(2)
            x = x + (to.t - now.t) * (negative + SCALE * (positive - negative))
        return x

    return loop


@pytest.mark.parametrize("batch", [1, 16, 64])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_beside_a_plain_loop(ratio, model, batch, compiled):
    net = torch.compile(model.net) if compiled else model.net
    twin = plain_loop(model, net, batch)
    sampler = fg.Sampler(model, fg.CFG(SCALE), steps=STEPS, compile=compiled)
    labels = torch.arange(batch) % 10
    torch.testing.assert_close(sampler(labels, range(batch)), twin(), rtol=1e-3, atol=1e-3)
    name = f"a run, {'compiled' if compiled else 'eager'}, batch {batch}, against a plain loop"
    ratio(name, lambda: sampler(labels, range(batch)), twin, rounds=15)


def test_reg_at_batch_8(ratio, model):
    labels = torch.arange(8)
    ours, twin = (
        fg.Sampler(model, one, steps=STEPS) for one in (fg.REG(fg.CFG(SCALE)), fg.CFG(SCALE))
    )
    name = "REG over CFG, batch 8, against CFG"
    ratio(name, lambda: ours(labels, range(8)), lambda: twin(labels, range(8)), rounds=15)
