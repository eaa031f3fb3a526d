"""The families of diffusers by their modules, against the published formulas done by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastguide as fg
from fastguide import reference

diffusers = pytest.importorskip("diffusers")

from tiny_families import FAMILIES, SHAPE_OF, Called, condition  # noqa: E402

from fastguide.adapters.diffusers.blocks import modules_of  # noqa: E402

CFG, WEIGHT = 3.0, 2.0


class Staged(nn.Module):
    """The network in our contract."""

    def __init__(self, called):
        super().__init__()
        self.called = called
        self.modules_of_net = modules_of(called, called.net, "net")

    @property
    def stages(self):
        return self.modules_of_net.stages

    @property
    def middle(self):
        return self.modules_of_net.middle

    def forward(self, x, t, cond):
        return self.called(x, t, cond)


def model(net, family):
    return fg.Model(net, fg.Flow(), fg.Prediction("flow"), SHAPE_OF[family])


def textbook(how, grid, image, plain):
    """Attention with full matrices, the image's tokens at `image`, in place of PyTorch's."""
    tokens = math.prod(grid)

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **other):
        n, m = query.shape[2], key.shape[2]
        if n != m or n < tokens:  # to a text alone
            return plain(query, key, value, attn_mask, dropout_p, is_causal, **other)
        if key.shape[1] != query.shape[1]:
            times = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(times, 1) for x in (key, value))
        start = 0 if image == "first" else n - tokens
        mine = torch.zeros(n, dtype=torch.bool)
        mine[start : start + tokens] = True
        scale = other.get("scale") or query.shape[-1] ** -0.5
        if how != "identity":
            some = query[:, :, mine]
            if how == math.inf:
                some = some.mean(2, keepdim=True).expand_as(some)
            else:
                flat = some.transpose(1, 2).flatten(2)
                some = reference.blur(flat, how, grid).unflatten(-1, (query.shape[1], -1))
                some = some.transpose(1, 2)
            query = query.clone()
            query[:, :, mine] = some
        scores = query @ key.transpose(2, 3) * scale
        if attn_mask is not None:
            hidden = -math.inf if attn_mask.dtype == torch.bool else 0.0
            bias = attn_mask
            if attn_mask.dtype == torch.bool:
                bias = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, hidden)
            scores = scores + bias
        if how == "identity":
            others = mine[:, None] & mine[None, :] & ~torch.eye(n, dtype=torch.bool)
            scores = scores.masked_fill(others, -math.inf)
        return scores.softmax(-1).nan_to_num() @ value  # a padded query, which sees nothing

    return attend


def by_hand(called, how, layers, grid, image):
    """A copy whose attention in `layers` is that of the textbook."""
    other = copy.deepcopy(called)
    for name in layers:
        block = other.net.get_submodule(name)

        def forward(*args, run=block.forward, **kwargs):
            plain = F.scaled_dot_product_attention
            torch.nn.functional.scaled_dot_product_attention = textbook(how, grid, image, plain)
            try:
                return run(*args, **kwargs)
            finally:
                torch.nn.functional.scaled_dot_product_attention = plain

        block.forward = forward
    return other


def left_out(called, layer):
    """A copy without a block, by what `families` says of its arguments and results."""
    other = copy.deepcopy(called)
    block = other.net.get_submodule(layer)

    def forward(hidden_states, encoder_hidden_states=None, *_, **__):
        return FAMILIES[called.family].skipped(hidden_states, encoder_hidden_states)

    block.forward = forward
    return other


def sampled(net, family, guidance, rows=None):
    sampler = fg.Sampler(model(net, family), guidance, steps=2, rows=rows)
    return sampler(condition(family, 1), [1, 2], condition(family, 2))


class Led(nn.Module):
    """Leads the rows of the positive condition away from `other`."""

    def __init__(self, called, other, family):
        super().__init__()
        self.called, self.other, self.family = called, other, family

    def forward(self, x, t, cond):
        clean = self.called(x, t, cond)
        delta = WEIGHT / CFG * (clean - self.other(x, t, cond))
        positive = (cond["text"] == condition(self.family, 1)["text"][:1]).flatten(1).all(1)
        positive = positive | (cond["text"] == condition(self.family, 1)["text"][1:]).flatten(
            1
        ).all(1)
        return clean + delta * positive.view(-1, *[1] * (x.ndim - 1))


HOWS = {"pag": "identity", "seg": math.inf, "seg of 1": 1.0}
OF_AXES = (math.inf, 1.0, 0.5)  # of a video's
CASES = [(family, name) for family in FAMILIES for name in (*HOWS, "slg")]


@pytest.mark.parametrize(("family", "name"), CASES, ids=[f"{f}-{n}" for f, n in CASES])
def test_published_formulas(family, name):
    told = FAMILIES[family]
    if name == "slg" and told.skipped is None:
        pytest.skip("no block can be left out")
    called = Called(family)
    layers = list(told.layers)
    if name == "slg":
        guidance, other = fg.SLG(WEIGHT, layers=layers[0]), left_out(called, layers[0])
    else:
        how = OF_AXES if name == "seg of 1" and len(told.grid) == 3 else HOWS[name]
        guidance = (
            fg.PAG(WEIGHT, layers=layers)
            if how == "identity"
            else fg.SEG(WEIGHT, layers=layers, sigma=how)
        )
        other = by_hand(called, how, layers, told.grid, told.image)
    want = sampled(Led(called, other, family), family, fg.CFG(CFG))
    got = sampled(Staged(called), family, fg.CFG(CFG) + guidance)
    off = sampled(Staged(called), family, fg.CFG(CFG))
    size = want.abs().max()
    assert (got - want).abs().max() <= 1e-5 * size
    assert (off - want).abs().max() > 1e-3 * size
    assert torch.equal(off, sampled(called, family, fg.CFG(CFG)))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens(family):
    """Permuted tokens change the output and leave the clean rows alone."""
    net = Staged(Called(family))
    plain = sampled(net, family, fg.CFG(CFG))
    got = sampled(net, family, fg.CFG(CFG) + fg.TPG(WEIGHT, layers="mid"))
    assert bool(torch.isfinite(got).all())
    assert (got - plain).abs().max() > 1e-4 * plain.abs().max()
    quiet = sampled(net, family, fg.CFG(CFG) + fg.TPG(1e-30, layers="mid"))
    torch.testing.assert_close(quiet, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_times(family):
    """A perturbed time does the same."""
    net = Staged(Called(family))
    if net.modules_of_net.time is None:
        pytest.skip("no submodule embeds the time for all blocks")
    plain = sampled(net, family, fg.CFG(CFG))
    got = sampled(net, family, fg.CFG(CFG) + fg.TSG(2.0, layers="time"))
    assert bool(torch.isfinite(got).all())
    assert (got - plain).abs().max() > 1e-4 * plain.abs().max()


def test_from_diffusers():
    """The low door takes a network that has no stages, by its pipeline's conventions."""
    called = Called("wan")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    opened = fg.from_diffusers(called.net, scheduler, SHAPE_OF["wan"])
    text, other = condition("wan", 1)["text"], condition("wan", 2)["text"]
    guidance = fg.CFG(CFG) + fg.PAG(WEIGHT, layers="blocks.2")
    known = {"steps": 2, "seeds": [1, 2], "spacing": fg.linspace()}
    name = "encoder_hidden_states"
    got = fg.sample(opened, {name: text}, guidance, negative={name: other}, **known)
    staged = model(Staged(called), "wan")
    want = fg.sample(staged, {"text": text}, guidance, negative={"text": other}, **known)
    torch.testing.assert_close(got, want)
