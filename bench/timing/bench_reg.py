"""What REG costs beside CFG, in time and in memory, on the bundled model and on a U-Net."""

from __future__ import annotations

import pytest
import torch
from bench_perturbation import randomised, unet
from memory import peak_bytes, weight_bytes

import fastguide as fg

SCALE = 2.0


def fashion():
    """The bundled DiT, batch 32."""
    return fg.load("fashion"), 32


def random_unet():
    """Three levels of 4 x 32 x 32, batch 32."""
    net = randomised(unet())
    return fg.Model(net, fg.Flow(), fg.Prediction("flow"), (4, 32, 32), null=10), 32


MODELS = {"DiT": fashion, "U-Net": random_unet}
MODES = {
    "vjp": (lambda: fg.REG(fg.CFG(SCALE)), 1.62),
    "chain": (lambda: fg.REG(fg.CFG(SCALE), "chain"), None),
    "difference": (lambda: fg.REG(fg.CFG(SCALE), "difference"), None),
    "vjp, every 4": (lambda: fg.REG(fg.CFG(SCALE), every=4), 1.3),
    "difference, every 4": (lambda: fg.REG(fg.CFG(SCALE), "difference", every=4), 1.3),
    "vjp, checkpoint": (lambda: fg.REG(fg.CFG(SCALE), checkpoint=True), None),
}


def calls(kind, guidance, steps):
    """(with the guidance, with CFG, the network): the same samples."""
    model, batch = MODELS[kind]()
    labels = torch.arange(batch) % 10
    samplers = [fg.Sampler(model, one, steps=steps) for one in (guidance, fg.CFG(SCALE))]
    return *(lambda s=s: s(labels, range(batch)) for s in samplers), model.net


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", MODELS)
def test_time(ratio, kind, mode):
    """A backward pass of one row beside the forward passes of two."""
    make, limit = MODES[mode]
    ours, twin, _ = calls(kind, make(), 4)
    ratio(f"REG ({mode}) against CFG, {kind}", ours, twin, limit=limit, rounds=5)


@pytest.mark.parametrize(
    ("mode", "limit"), [("vjp", 1.5), ("difference", 1.15), ("vjp, checkpoint", None)]
)
@pytest.mark.parametrize("kind", MODELS)
def test_memory(kind, mode, limit):
    """Peak of weights and all else, as a GPU would count it; one sample, as its poster does."""
    model, _ = MODELS[kind]()
    labels = torch.zeros(1, dtype=torch.int64)
    peaks = []
    for guidance in (MODES[mode][0](), fg.CFG(SCALE)):
        sampler = fg.Sampler(model, guidance, steps=1)
        peaks.append(peak_bytes(lambda s=sampler: s(labels, 0)))
    weights = weight_bytes(model.net)
    value = (peaks[0] + weights) / (peaks[1] + weights)
    print(
        f"memory, REG ({mode}) against CFG, {kind}: {value:.3f} "
        f"(without the weights {peaks[0] / peaks[1]:.2f})"
    )
    assert limit is None or value <= limit
