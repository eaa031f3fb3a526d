"""Every kind of perturbation in every family, against the published formula done by hand."""

from __future__ import annotations

import math

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from perturbed_diffusers import Guided, perturbed  # noqa: E402
from tiny_diffusers import NETS  # noqa: E402
from tiny_pipelines import PIPES, ddim_pipe, plain_call, result  # noqa: E402

LIMIT = 1e-4
MID = "mid_block.attentions.0.transformer_blocks.0.attn1"
DOWN = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
# family: layers, and the grid of their tokens
LAYERS = {
    "sd": [([MID], (8, 8)), ([DOWN], (16, 16))],
    "sdxl": [(["down_blocks.1.attentions.0.transformer_blocks.1.attn1", MID], (8, 8))],
    "sd3": [(["transformer_blocks.1"], (4, 4)), (["transformer_blocks.2"], (4, 4))],
    "flux": [(["transformer_blocks.1"], (4, 8)), (["single_transformer_blocks.0"], (4, 8))],
    "pixart": [(["transformer_blocks.0", "transformer_blocks.2"], (4, 4))],
    "sana": [(["transformer_blocks.1"], (16, 16))],
    "dit": [(["transformer_blocks.1"], (4, 4))],
}
CASES = [(family, *case) for family, cases in LAYERS.items() for case in cases]
NAMES = [f"{family}-{layers[0]}" for family, layers, _ in CASES]
HOWS = {"pag": "identity", "seg": math.inf, "seg of 1.5": 1.5}


def net_of(family):
    return "unet" if family in ("sd", "sdxl") else "transformer"


def by_hand(pipe, call, family, knob, other, weight, scale):
    """The pipeline's own loop, its network replaced: led away from what `other` predicts."""
    name = net_of(family)
    net = getattr(pipe, name)
    guided = Guided(net, other, weight, scale, family != "dit")
    if family == "flux" and scale is not None:  # the positive call comes alone, and first
        return flux_by_hand(pipe, call, net, guided.other, weight, scale)
    pipe.__dict__[name] = guided
    try:
        if family == "dit":
            guided.forward = lambda *a, f=guided.forward, **k: Tuple(f(*a, **k))
        return result(pipe(**call(**{knob: 1.0 if scale is None else scale})))
    finally:
        pipe.__dict__[name] = net


class Tuple(tuple):
    @property
    def sample(self):
        return self[0]


def flux_by_hand(pipe, call, net, other, weight, scale):
    calls = []

    class Pair(Guided):
        def forward(self, *args, **kwargs):
            calls.append(1)
            clean = self.net(*args, **kwargs)[0]
            if len(calls) % 2 == 0:
                return (clean,)
            return (clean + weight / scale * (clean - self.other(*args, **kwargs)[0]),)

    pipe.__dict__["transformer"] = Pair(net, other, weight)
    try:
        return result(pipe(**call(true_cfg_scale=scale)))
    finally:
        pipe.__dict__["transformer"] = net


def check(got, want, limit=LIMIT):
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= limit, error


def guidance(how, weight, layers):
    if how == "identity":
        return fg.PAG(weight, layers=layers)
    return fg.SEG(weight, layers=layers, sigma=how)


@pytest.mark.parametrize("scale", [None, 4.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
@pytest.mark.parametrize(
    ("family", "layers", "grid"), CASES, ids=[f"{c[0]}-{c[1][0]}" for c in CASES]
)
def test_attention(family, layers, grid, how, scale):
    make, call, knob = PIPES[family]
    pipe = make()
    other = perturbed(getattr(pipe, net_of(family)), layers, how, grid)
    want = by_hand(pipe, call, family, knob, other, 2.0, scale)
    chosen = guidance(how, 2.0, layers)
    chosen = chosen if scale is None else fg.CFG(scale) + chosen
    got = result(fg.accelerate(pipe, chosen)(**call()))
    check(got, want)
    other = result(fg.accelerate(pipe, None if scale is None else fg.CFG(scale))(**call()))
    assert (other - want).abs().max() > 10 * LIMIT * want.abs().max()  # the method does something


WEAK = {
    "sd": {"layers_per_block": 2},
    "sdxl": {"layers_per_block": 2},
    "sd3": {"num_layers": 2},
    "flux": {"num_layers": 1},
    "pixart": {"num_layers": 2},
    "sana": {"num_layers": 2},
    "dit": {"num_layers": 2},
}


@pytest.mark.parametrize("scale", [None, 4.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("family", WEAK)
def test_other_networks(family, scale):
    """Autoguidance and SIMS with another network of the family, made by `from_diffusers`."""
    make, call, knob = PIPES[family]
    pipe, weak = make(), NETS[family][0](**WEAK[family])
    other = fg.from_diffusers(weak, pipe.scheduler, (4, 16, 16))
    want = by_hand(pipe, call, family, knob, weak, 1.5, scale)
    for guidance in (fg.AutoGuidance(other, 2.5), fg.SIMS(other, 1.5)):
        chosen = guidance if scale is None else fg.CFG(scale) + guidance
        check(result(fg.accelerate(pipe, chosen)(**call())), want)
    plain = result(fg.accelerate(pipe, None if scale is None else fg.CFG(scale))(**call()))
    assert (plain - want).abs().max() > 10 * LIMIT * want.abs().max()


def test_attention_of_an_unconditional_network():
    pipe = ddim_pipe()
    net = pipe.unet
    layers = ["mid_block.attentions.0", "up_blocks.0.attentions.1"]
    for how in HOWS.values():
        other = perturbed(net, layers, how, (8, 8))
        pipe.__dict__["unet"] = guided = Guided(net, other, 2.0)
        guided.forward = lambda *a, f=guided.forward, **k: Tuple(f(*a, **k))
        want = result(pipe(**plain_call()))
        pipe.__dict__["unet"] = net
        got = result(fg.accelerate(pipe, guidance(how, 2.0, layers))(**plain_call()))
        check(got, want)


@pytest.mark.parametrize("family", PIPES)
def test_clean_rows_do_not_change(family):
    """A perturbation of no weight to speak of leaves what the clean rows give."""
    make, call, _ = PIPES[family]
    pipe = make()
    want = result(fg.accelerate(pipe, fg.CFG(4.0))(**call()))
    for one in (fg.PAG(1e-30), fg.SEG(1e-30), fg.TPG(1e-30), fg.SLG(1e-30)):
        got = result(fg.accelerate(pipe, fg.CFG(4.0) + one)(**call()))
        check(got, want, 1e-5)


@pytest.mark.parametrize("family", PIPES)
def test_every_method_does_something(family):
    make, call, _ = PIPES[family]
    pipe = make()
    plain = result(fg.accelerate(pipe, fg.CFG(2.0))(**call()))
    layer = "mid"
    time = "transformer_blocks.1" if family == "dit" else "time"
    methods = [
        fg.SLG(1.0, layers=layer),
        fg.STG(1.0, layers=layer, mode="attention"),
        fg.TPG(1.0, layers=layer),
        fg.NAG(3.0, layers=layer),
        fg.TSG(2.0, layers=time),
        fg.ICG(2.0),
        fg.PAG(1.0, layers="all", of="negative"),
    ]
    if family in ("sd", "sdxl", "pixart", "dit"):
        methods.append(fg.SAG(1.0, layers=MID if family == "sdxl" else "mid"))
    for method in methods:
        got = result(fg.accelerate(pipe, fg.CFG(2.0) + method)(**call()))
        assert bool(torch.isfinite(got).all()), method
        assert (got - plain).abs().max() > 1e-4 * plain.abs().max(), method


def skipped(net, name):
    """The prediction without one block."""
    block = net.get_submodule(name)
    forward = block.forward
    if name.endswith("attn1"):
        block.forward = lambda x, *_, **__: torch.zeros_like(x)
    elif "single" in name or hasattr(block, "norm1_context"):
        block.forward = lambda hidden_states, encoder_hidden_states, *_, **__: (
            encoder_hidden_states,
            hidden_states,
        )
    else:
        block.forward = lambda x, *_, **__: x
    return lambda: setattr(block, "forward", forward)


@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("sd", MID),
        ("sd3", "transformer_blocks.1"),
        ("flux", "transformer_blocks.0"),
        ("flux", "single_transformer_blocks.1"),
        ("pixart", "transformer_blocks.1"),
        ("sana", "transformer_blocks.2"),
        ("dit", "transformer_blocks.0"),
    ],
)
def test_skipped_layers(family, layer):
    make, call, knob = PIPES[family]
    pipe = make()
    name = net_of(family)
    net = getattr(pipe, name)

    class Other(torch.nn.Module):
        def forward(self, *args, **kwargs):
            undo = skipped(net, layer)
            try:
                return net(*args, **kwargs)
            finally:
                undo()

    guided = Guided(net, Other(), 2.0)
    if family == "dit":
        guided.forward = lambda *a, f=guided.forward, **k: Tuple(f(*a, **k))
    pipe.__dict__[name] = guided
    want = result(pipe(**call(**{knob: 1.0})))
    pipe.__dict__[name] = net
    got = result(fg.accelerate(pipe, fg.SLG(2.0, layers=layer))(**call()))
    check(got, want)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart", "sana", "dit"])
def test_projections_and_gradients(family):
    """What needs inner products of predictions, or the network's derivative, works in pipelines."""
    make, call, _ = PIPES[family]
    pipe = make()
    plain = result(fg.accelerate(pipe, fg.CFG(2.0))(**call()))
    for method in (fg.APG(fg.CFG(2.0), momentum=-0.5), fg.REG(fg.CFG(2.0))):
        got = result(fg.accelerate(pipe, method)(**call()))
        assert bool(torch.isfinite(got).all()), method
        assert (got - plain).abs().max() > 1e-4 * plain.abs().max(), method


def test_a_projection_by_hand():
    """APG without momentum or radius: CFG less its part along the positive."""
    make, call, knob = PIPES["sd"]
    pipe = make()
    scale = 4.0

    class Orthogonal(Guided):
        def forward(self, *args, **kwargs):
            negative, positive = self.net(*args, **kwargs)[0].chunk(2)
            x = args[0].chunk(2)[1]
            square = pipe.scheduler.alphas_cumprod[int(args[1])]
            clean = (x - (1 - square).sqrt() * positive) / square.sqrt()
            delta = positive - negative
            along = (delta * clean).sum((1, 2, 3), keepdim=True)
            along = along / clean.square().sum((1, 2, 3), keepdim=True) * clean
            guided = positive + (scale - 1) * (delta - along)
            return (torch.cat([guided, guided]),)

    net = pipe.unet
    pipe.__dict__["unet"] = Orthogonal(net, None, 0.0)
    want = result(pipe(**call(**{knob: 5.0})))
    pipe.__dict__["unet"] = net
    check(result(fg.accelerate(pipe, fg.APG(fg.CFG(scale)))(**call())), want)
