"""What guidance by inner products costs beside plain CFG: whole runs of the bundled model."""

from __future__ import annotations

import pytest
import torch

import fastguide as fg

METHODS = {
    "APG": lambda: fg.APG(fg.CFG(4.0), radius=2.5, momentum=-0.75),
    "CFG-Zero*": lambda: fg.CFGZeroStar(fg.CFG(4.0)),
    "rescale": lambda: fg.CFG(4.0).rescale(0.7),
    "TCFG": lambda: fg.TCFG(fg.CFG(4.0)),
    "MAMBO": lambda: fg.MAMBO(fg.CFG(4.0)),
}


@pytest.mark.parametrize("name", METHODS)
def test_projection(ratio, name):
    """The same rows of the network; one `gram`, and some arithmetic on a few numbers a sample."""
    model, labels = fg.load("fashion"), torch.arange(64) % 10
    ours, twin = (
        fg.Sampler(model, guidance, steps=4) for guidance in (METHODS[name](), fg.CFG(4.0))
    )
    ratio(
        f"{name} against CFG, batch 64",
        lambda: ours(labels, range(64)),
        lambda: twin(labels, range(64)),
        limit=1.02,
        rounds=9,
    )
