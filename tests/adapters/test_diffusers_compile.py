"""An accelerated pipeline compiles to one graph for each pattern of branches, without a break."""

from __future__ import annotations

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from tiny_diffusers import sd  # noqa: E402
from tiny_pipelines import PIPES, ddim, result  # noqa: E402

from fastguide.engine.compiled import _graph  # noqa: E402
from fastguide.engine.program import make_program  # noqa: E402
from fastguide.guidance.base import Branch  # noqa: E402


@pytest.fixture
def graphs():
    """The graphs that have been compiled, and a backend that notes them."""
    torch._dynamo.reset()
    found = []

    def backend(module, inputs):
        found.append(module)
        return module.forward

    return found, backend


@pytest.mark.parametrize("family", ["sd", "pixart", "flux"])
def test_one_graph_for_each_pattern(family, graphs):
    found, backend = graphs
    make, call, _ = PIPES[family]
    pipe = make()
    middle = 0.5 if family in ("sd3", "flux") else 500.0
    half = fg.CFG(4.0, schedule=lambda at: float(at.t > middle))
    guidance = half + fg.PAG(2.0) + fg.TPG(1.0)
    want = result(fg.accelerate(pipe, guidance)(**call()))
    mine = fg.accelerate(pipe, guidance, compile={"backend": backend})
    for steps in (4, 4, 6):
        got = result(mine(**call(num_inference_steps=steps)))
        if steps == 4:
            assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert len(found) == 2  # fullgraph=True: a break would have been an error
    both = fg.accelerate(pipe, fg.CFG(4.0) + fg.SEG(2.0), compile={"backend": backend})
    both(**call())
    assert len(found) == 3


def test_programs_do_not_share_recompilations():
    """torch.compile gives up on a function after some recompilations, counted by its code."""
    net = fg.from_diffusers(sd(), ddim()).net
    one, other = (_graph(make_program([Branch()], net)) for _ in range(2))
    assert one.__code__ is not other.__code__
