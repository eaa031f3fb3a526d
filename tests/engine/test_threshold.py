"""Dynamic thresholding: the bound is a quantile, and a run with it is the plain formula."""

import math

import exact
import pytest
import torch

import fastguide as fg
from fastguide.ops import table as tables
from fastguide.ops.table import Column


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("shape", [(3, 1), (2, 2), (2, 4, 7, 5)])
def test_the_bound_is_the_quantile_of_the_denoised_image(quantile, shape):
    x, branches = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    weights = torch.randn(shape[0], 4)
    row = torch.zeros(tables.width(1))
    row[Column.OF_X], row[Column.OF_PREDICTION] = 1.3, -0.7
    w = weights.reshape(*weights.shape, *[1] * (x.ndim - 1))
    guided = w[:, 1] * branches[0]
    guided = guided + sum(w[:, 1 + k] * (branches[0] - branches[k]) for k in (1, 2))
    want = (w[:, 0] * 1.3 * x - 0.7 * guided).abs().flatten(1).quantile(quantile, dim=1)
    got = fg.DynamicThreshold(quantile, floor=1e-6).bounds(x, branches, weights, row)
    torch.testing.assert_close(got, want)
    bounded = fg.DynamicThreshold(quantile, 0.5, 0.6).bounds(x, branches, weights, row)
    torch.testing.assert_close(bounded, want.clamp(0.5, 0.6))


def test_fixed_bounds_are_the_static_clamp(process):
    model = exact.two_classes(process)
    labels = torch.tensor([0, 1, 1])
    arguments = {"guidance": fg.CFG(4.0), "steps": 6, "seeds": range(3)}
    static = fg.sample(model, labels, clamp=1.0, **arguments)
    dynamic = fg.sample(model, labels, clamp=fg.DynamicThreshold(0.9, 1.0, 1.0), **arguments)
    torch.testing.assert_close(dynamic, static)
    free = fg.sample(model, labels, **arguments)
    other = fg.sample(model, labels, clamp=fg.DynamicThreshold(0.8, 0.5), **arguments)
    for images in (static, other):
        assert (images - free).abs().amax((1, 2, 3)).min() > 1e-3
    assert other.abs().max() <= 1 + 1e-6  # divided by the bound


def test_a_sample_has_its_own_bound():
    model = exact.two_classes(exact.PROCESSES["flow"])
    threshold = fg.DynamicThreshold(0.8, 0.5)
    arguments = {"guidance": fg.CFG(4.0), "steps": 6, "clamp": threshold}
    both = fg.sample(model, [0, 1], seeds=[5, 6], **arguments)
    alone = fg.sample(model, [1], seeds=[6], **arguments)
    torch.testing.assert_close(both[1:], alone)


def test_nan_is_still_reported():
    model = exact.two_classes(exact.PROCESSES["flow"])

    def net(x, t, cond):
        out = model.net(x, t, cond)
        out[0, 0, 0, 0] = math.nan
        return out

    broken = fg.Model(net, model.process, model.prediction, model.shape, null=2)
    with pytest.raises(fg.NonFiniteError, match="evaluation 1 of 3"):
        fg.sample(broken, [0, 1], steps=3, seeds=[0, 1], clamp=fg.DynamicThreshold())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0.0,), "quantile is 0.0"), ((1.5,), "quantile is 1.5"), ((0.9, 2.0, 1.0), "floor, ceiling")],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        fg.DynamicThreshold(*arguments)
