"""`Sampler(compile=)`: a graph for each program, the same samples, and nothing compiled twice."""

import pickle

import pytest
import torch
from exact import two_classes
from test_perturbation import dit, model_of

import fastguide as fg

LABELS = torch.arange(2)


@pytest.fixture
def graphs():
    """The graphs that have been compiled, and a backend that notes them."""
    torch._dynamo.reset()
    found = []

    def backend(module, inputs):
        found.append(module)
        return module.forward

    return found, backend


def test_one_graph_for_each_program_and_the_same_samples(graphs):
    found, backend = graphs
    model = model_of(dit())
    guidance = fg.CFG(3.0, fg.interval(0.4, 2.0, over="t")) + fg.PAG(1.0)
    sampler = fg.Sampler(model, guidance, steps=3, compile={"backend": backend})
    want = fg.sample(model, LABELS, guidance, steps=3, seeds=range(2))
    for _ in range(2):
        got = sampler(LABELS, range(2))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert len(found) == 2  # within the interval and outside; fullgraph: a break is an error
    less = fg.CFG(2.0, fg.interval(0.4, 2.0, over="t")) + fg.PAG(2.0)
    other = sampler.replaced(guidance=less, steps=4)
    plain = fg.Sampler(model, less, steps=4)
    torch.testing.assert_close(
        other(LABELS, range(2)), plain(LABELS, range(2)), rtol=1e-4, atol=1e-5
    )
    assert sampler.memory(2).run > 0
    assert len(found) == 2  # neither other numbers nor an estimate compile anything


def test_attention_that_is_observed_and_mixed(graphs):
    """SAG's second pass, and NAG, whose scale is a number of the plan."""
    _, backend = graphs
    model = model_of(dit())
    guidance = fg.SAG(0.8) + fg.NAG(2.0)
    want = fg.sample(model, LABELS, guidance, steps=2, seeds=range(2))
    sampler = fg.Sampler(model, guidance, steps=2, compile={"backend": backend})
    torch.testing.assert_close(sampler(LABELS, range(2)), want, rtol=1e-4, atol=1e-4)


def test_a_copy_compiles_for_itself():
    one = fg.Sampler(two_classes(fg.EDM()), fg.CFG(2.0), steps=2, compile={"backend": "eager"})
    compiled = [each._planned.setup.compiled for each in (one, pickle.loads(pickle.dumps(one)))]
    assert compiled[1] is not compiled[0]
    assert compiled[1].given == {"backend": "eager"}


def test_what_cannot_be_compiled_is_named_at_once():
    model = model_of(dit())
    for guidance in (fg.REG(fg.CFG(2.0)), fg.REG(fg.CFG(2.0), "difference")):
        with pytest.raises(ValueError, match="compile is on, but the guidance differentiates"):
            fg.Sampler(model, guidance, steps=2, compile=True)
    with pytest.raises(TypeError, match="compile is 3, but it should be True, False or options"):
        fg.Sampler(two_classes(fg.EDM()), compile=3)
