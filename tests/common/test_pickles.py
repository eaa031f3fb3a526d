"""Solvers, spacings, samplers, models and guidances can be pickled and copied deeply."""

import copy
import pickle

import pytest
import torch
from exact import two_classes
from test_perturbation import dit, model_of

import fastguide as fg
from fastguide.common.options import Configured
from fastguide.solvers import SOLVERS
from fastguide.spacing import SPACINGS

WAYS = [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy]


@pytest.mark.parametrize("again", WAYS)
@pytest.mark.parametrize("name", [*sorted(SOLVERS), *sorted(SPACINGS)])
def test_solvers_and_spacings(name, again):
    one = {**SOLVERS, **SPACINGS}[name]
    copied = again(one)
    assert copied.function is one.function
    assert dict(copied.options) == dict(one.options)


@pytest.mark.parametrize("again", WAYS)
def test_options_come_along(again):
    levels = fg.make_levels(fg.EDM(), 4, again(fg.karras(rho=5.0)))
    assert levels == again(fg.make_levels(fg.EDM(), 4, fg.karras(rho=5.0)))
    for solver in (fg.ddim(eta=0.4), fg.plms):
        assert list(again(solver).run(levels)) == list(solver.run(levels))


def plain(levels):
    return iter(())


made = Configured(plain)


def test_functions_that_are_not_found_by_name():
    assert pickle.loads(pickle.dumps(made)).function is plain
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Configured(lambda levels: iter(())))


def energy(x, t):
    return x.flatten(1).square().sum(1)


GUIDANCE = {
    "interval": fg.CFG(3.0, fg.interval(0.1, 0.6, over="step")),
    "sum": fg.APG(fg.CFG(3.0) + fg.PAG(1.0), momentum=-0.5).rescale(0.3),
    "reg": fg.REG(fg.CFG(torch.tensor([2.0, 3.0]))),
    "energy": fg.EnergyGuidance(energy, 0.1),
    "nag": fg.NAG(2.0) + fg.CFG([3.0, 2.0, 1.0]),
}


@pytest.mark.parametrize("again", WAYS)
@pytest.mark.parametrize("name", GUIDANCE)
def test_guidances_and_samplers(name, again):
    model = model_of(dit())
    first = fg.Sampler(model, GUIDANCE[name], "dpmpp_2m", 3, clamp=1.5, rows="sequential")
    want = first([1, 2], [3, 4])
    for sampler in (
        again(first),
        fg.Sampler(
            again(model), again(GUIDANCE[name]), "dpmpp_2m", 3, clamp=1.5, rows="sequential"
        ),
    ):
        assert torch.equal(sampler([1, 2], [3, 4]), want)
        assert sampler.rows == "sequential"


@pytest.mark.parametrize("again", WAYS)
def test_bundled_and_exact_models(again):
    exact_one = two_classes(fg.EDM())
    for model in (fg.load("fashion"), exact_one):
        copied = again(model)
        assert copied.process == model.process
        want = fg.sample(model, 1, fg.CFG(2.0), steps=2)
        assert torch.equal(fg.sample(copied, 1, fg.CFG(2.0), steps=2), want)


@pytest.mark.parametrize("again", WAYS)
def test_a_sampler_that_draws_along_a_path(again):
    first = fg.Sampler(two_classes(fg.EDM()), fg.CFG(2.0), "ddpm", 3, noise="brownian")
    copied = again(first)
    assert torch.equal(copied([1], [3]), first([1], [3]))
    assert not torch.equal(copied([1], [3]), first.replaced(noise="independent")([1], [3]))


def test_a_sampler_in_16_bits_stays_so():
    first = fg.Sampler(model_of(dit()), fg.CFG(2.0), steps=2, dtype=torch.bfloat16, max_batch=3)
    copied = copy.deepcopy(first)
    assert copied.dtype == torch.bfloat16
    assert torch.equal(copied([1], [3]), first([1], [3]))
    assert copied._packing == (3, 0.005)
    assert copied.net is not first.net
