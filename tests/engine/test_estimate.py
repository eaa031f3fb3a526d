"""What a run takes of memory: by the estimate, and as measured."""

import sys
from pathlib import Path

import pytest
import torch
from recorder import captured
from test_others import weak_dit
from test_perturbation import dit, model_of, unet

import fastguide as fg
from fastguide.sampling.inputs import bind_all, make_inputs

sys.path.append(str(Path(__file__).parents[2] / "bench/common"))
from memory import peak_bytes, weight_bytes

GUIDANCES = {
    "none": lambda: None,
    "cfg": lambda: fg.CFG(3.0),
    "pag": lambda: fg.CFG(3.0) + fg.PAG(1.0),
    "held": lambda: fg.CFG(3.0, every=2),
    "reg": lambda: fg.REG(fg.CFG(3.0)),
    "apg": lambda: fg.APG(fg.CFG(3.0), momentum=-0.5),
    "adaptive": lambda: fg.Adaptive(fg.CFG(3.0)),
    "icg": lambda: fg.ICG(3.0),
    "sag": lambda: fg.SAG(0.5),
    "autoguidance": lambda: fg.AutoGuidance(model_of(weak_dit(), (2, 16, 16)), 2.0),
}


@pytest.mark.parametrize("net", [dit, unet])
@pytest.mark.parametrize("name", GUIDANCES)
def test_the_estimate_is_near_the_measured_peak(name, net):
    model = model_of(net(), (2, 16, 16))
    sampler = fg.Sampler(model, GUIDANCES[name](), fg.dpmpp_2m, steps=4)
    found = sampler.memory(16)
    labels = [i % 5 for i in range(16)]
    measured = peak_bytes(lambda: sampler(labels, range(16)))
    assert 0.97 < found.run / measured < 1.03
    assert found.state >= 4 * 16 * 2 * 16 * 16 * 3
    assert found.total == found.weights + found.run


def test_weights_and_what_graphs_add():
    model, weak = model_of(dit(), (2, 16, 16)), model_of(weak_dit(), (2, 16, 16))
    sampler = fg.Sampler(model, fg.AutoGuidance(weak, 2.0), steps=2)
    want = weight_bytes(model.net) + weight_bytes(weak.net)
    assert sampler.memory(2).weights == want
    half = fg.Sampler(model, fg.CFG(2.0), steps=2, dtype=torch.bfloat16)
    assert half.memory(2).weights < 0.6 * weight_bytes(model.net)
    graphs = captured(model, fg.CFG(2.0), steps=2)
    eager = fg.Sampler(model, fg.CFG(2.0), steps=2)
    # the labels of both branches, and the results
    prepared = bind_all(graphs._planned, None, None, 1).fixed[None]
    inputs = sum(t.nbytes for t in torch.utils._pytree.tree_leaves(prepared))
    assert graphs.memory(8).run - eager.memory(8).run == 8 * (inputs + 4 * 2 * 16 * 16)
    with pytest.raises(ValueError, match="batch is 0"):
        eager.memory(0)


def test_nothing_is_compiled_for_it():
    def backend(graph, inputs):
        raise RuntimeError("compiled")

    net, shape = dit(), (2, 16, 16)
    compiled = model_of(torch.compile(net, backend=backend), shape)
    sampler = captured(compiled, fg.CFG(3.0), steps=3, graph=True)
    plain = captured(model_of(net, shape), fg.CFG(3.0), steps=3)
    assert sampler.memory(4).weights == plain.memory(4).weights
    assert sampler.memory(4).run >= plain.memory(4).run  # in one piece, no stem is shared
    inputs = make_inputs(sampler._planned, None, None, torch.arange(2))
    assert sampler._runner.way(sampler._planned, sampler.plan, inputs, None) == "whole"
    with pytest.raises(Exception, match="compiled"):
        sampler([1], [5])


def test_the_sampler_is_as_it_was():
    sampler = fg.Sampler(model_of(dit(), (2, 16, 16)), fg.CFG(3.0, every=2), steps=4)
    want = sampler([1], [5])
    sampler.memory(3)
    assert torch.equal(sampler([1], [5]), want)
