"""step and noise against the same maths in eager PyTorch: what fusing the update is worth."""

from __future__ import annotations

import pytest
import torch

import fastguide as fg
from fastguide import ops
from fastguide.engine.plan import make_plan


@pytest.mark.parametrize("shape", [(16, 4, 128, 128), (64, 4, 64, 64)], ids=str)
@pytest.mark.parametrize("eta", [1.0, 0.0], ids=["noise", "no noise"])
def test_step(ratio, shape, eta):
    """Two branches, one DDIM step, the next input for two rows a sample."""
    process, prediction = fg.VP("linear"), fg.Prediction("eps")
    levels = fg.make_levels(process, 10)
    plan = make_plan(prediction, levels, fg.ddim(eta=eta), fg.CFG(3.0))
    batch = shape[0]
    state = torch.randn(1, *shape)
    output = torch.randn(2 * batch, *shape[1:])
    cond, uncond = output.chunk(2)
    net_input = torch.empty(2 * batch, *shape[1:])
    bad = torch.full((batch,), len(plan.rows), dtype=torch.int32)
    seeds, row = torch.arange(batch), plan.rows[3]

    def fused():
        ops.step(
            state,
            [cond, uncond],
            plan.weights,
            plan.table,
            plan.index[3],
            bad,
            seeds=seeds if row.draws else None,
            net_input=net_input,
            reads=row.reads,
            writes=row.writes,
        )

    now = levels.points[2]
    (a, b), update = prediction.denoised(now), list(fg.ddim(eta=eta).run(levels))[2]
    x = state[0].clone()

    def eager():
        guided = uncond + 3.0 * (cond - uncond)
        denoised = a * x + b * guided
        new = update.x["x"] * x + update.x["denoised"] * denoised
        if "noise" in update.x:
            new = new + update.x["noise"] * torch.randn_like(x)
        return torch.cat([new, new])

    if eta == 0.0:  # the same numbers before the same maths is timed
        want = eager()
        fused()
        torch.testing.assert_close(net_input, want, rtol=1e-5, atol=1e-5)
    name = f"step {list(shape)} {'with' if eta else 'without'} noise, against eager PyTorch"
    ratio(name, fused, eager, limit=1 / 3 if eta else None, rounds=41)


def test_noise(ratio):
    """Seeded per-sample noise against torch.randn, which knows one seed for all."""
    shape = (16, 4, 128, 128)
    seeds = torch.arange(16)
    ratio(
        "noise [16, 4, 128, 128], against torch.randn",
        lambda: fg.noise(seeds, shape[1:]),
        lambda: torch.randn(shape),
        rounds=41,
    )
