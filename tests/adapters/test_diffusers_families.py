"""Pipelines of the families without hand-written stages: their own CFG, their conventions, and
guidance beside it.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from family_pipelines import (  # noqa: E402
    PIPELINES,
    call_of,
    flux2_vae,
    net_of,
    pipe_of,
    result,
)
from test_families import by_hand  # noqa: E402
from tiny_diffusers import B, rand  # noqa: E402

from fastguide.adapters.diffusers.by_blocks import whole  # noqa: E402

LIMIT = 1e-4


def built(name):
    try:
        return PIPELINES[name]()
    except ImportError as error:
        pytest.skip(str(error))


def error(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("name", PIPELINES)
def test_the_pipelines_own(name):
    """Called as it is, and by our name for the same scale; and a scale of 1 is no guidance."""
    pipe, call = built(name)
    want, about = result(pipe, call), fg.family(pipe)
    assert error(result(fg.guide(pipe), call), want) <= LIMIT
    lacks = 1.0 if about.formula == "c + s (c - u)" else 0.0
    told, second = call.pop(about.argument), call.pop("guidance_scale_2", None)
    if second is None:
        ours = fg.CFG(told + lacks)
        assert error(result(fg.guide(pipe, ours), call), want) <= LIMIT
    off = result(pipe, {**call, about.argument: 1.0 - lacks})
    assert error(off, want) > 1e-3
    assert error(result(fg.guide(pipe, fg.CFG(1.0)), call), off) <= LIMIT


HABITS = {
    "lumina2": ({"cfg_normalization": False}, {"cfg_trunc_ratio": 0.5}),
    "z-image": ({"cfg_normalization": 1.05}, {"cfg_truncation": 0.4}),
    "wan 2.2": ({"guidance_scale_2": 7.0}, {"guidance_scale_2": None}),
}


@pytest.mark.parametrize(("name", "change"), [(n, c) for n, both in HABITS.items() for c in both])
def test_habits(name, change):
    """What a pipeline does beside its scale; each changes its image."""
    pipe, call = built(name)
    want = result(pipe, {**call, **change})
    assert error(result(pipe, call), want) > 1e-3
    assert error(result(fg.guide(pipe), {**call, **change}), want) <= LIMIT


@pytest.mark.parametrize("name", ["qwen-image", "lumina2"])
def test_no_habits(name):
    """The norm can be left out, and another take its place."""
    pipe, call = built(name)
    scale = call.pop(fg.family(pipe).argument)
    own = result(fg.guide(pipe, fg.CFG(scale)), call)
    plain = result(fg.guide(pipe, fg.CFG(scale), habits=False), call)
    other = result(fg.guide(pipe, fg.CFGNorm(fg.CFG(scale), None)), call)
    assert min(error(own, plain), error(own, other), error(other, plain)) > 1e-3
    again = fg.CFGNorm(fg.CFG(scale), -1, grows=True)
    assert error(result(fg.guide(pipe, again, habits=False), call), own) <= 1e-6


def test_conventions():
    """`CFG(4)` means the same whatever the pipeline's own scale means."""
    pipe, call = built("z-image")
    assert fg.family(pipe).default == 6.0
    got = result(fg.guide(pipe, fg.CFG(4.0)), {**call, "guidance_scale": 3.0})
    assert error(got, result(pipe, {**call, "guidance_scale": 3.0})) <= LIMIT
    with pytest.raises(ValueError, match=r"guidance_scale is 4.0 in the call \(a CFG of 1.0 more"):
        result(fg.guide(pipe, fg.CFG(4.0)), {**call, "guidance_scale": 4.0})


PAG = {
    "wan": ("blocks.1", (3, 2, 4), "first"),
    "auraflow": ("joint_transformer_blocks.1", (4, 6), "last"),
    "z-image": ("layers.1", (4, 6), "first"),
    "hunyuan video": ("transformer_blocks.1", (3, 2, 4), "first"),
}


@pytest.mark.parametrize("name", PAG)
def test_a_perturbation_beside_it(name):
    """`c + w / s (c - p)` in the place of c, by hand in the pipeline's own network."""
    pipe, call = built(name)
    about = fg.family(pipe)
    scale = call[about.argument] + (1.0 if about.formula == "c + s (c - u)" else 0.0)
    layer, grid, image = PAG[name]
    net, weight = pipe.transformer, 2.0
    other = by_hand(SimpleNamespace(net=net), "identity", [layer], grid, image).net
    forward, calls = net.forward, []

    def led(*args, **kwargs):
        """In the rows of the positive condition alone."""
        out, perturbed = forward(*args, **kwargs)[0], other(*args, **kwargs)[0]
        calls.append(0)
        rows, positive = len(out), range(len(out))
        if about.negative == "apart":
            positive = positive if len(calls) % 2 else ()
        elif rows > 2:
            positive = range(rows // 2) if name == "z-image" else range(rows // 2, rows)
        new = [
            c + weight / scale * (c - p) if i in positive else c
            for i, (c, p) in enumerate(zip(out, perturbed, strict=True))
        ]
        return (new if isinstance(out, list) else torch.stack(new),)

    net.forward = led
    want = result(pipe, call)
    net.forward = forward
    plain = result(pipe, call)
    got = result(fg.guide(pipe, fg.PAG(weight, layers=layer)), call)
    assert error(plain, want) > 1e-3
    assert error(got, want) <= LIMIT


def test_family():
    """What it says: conventions, layers that can be named, and recommendations that are there."""
    pipe, _ = built("wan 2.2")
    about = fg.family(pipe)
    assert (about.default, about.negative, about.second) == (5.0, "apart", "transformer_2")
    assert about.layers == tuple(f"blocks.{i}" for i in range(4))
    assert about.middle == ("blocks.2",)
    assert about.recommended == ()
    with pytest.raises(ValueError, match="pipe is a str"):
        fg.family("wan")


def test_no_negative_rows():
    """A network that is told its guidance has no CFG; its layers are reached all the same."""
    pipe = pipe_of("Flux2Pipeline", net_of("flux.2"), vae=flux2_vae())
    call = call_of({"prompt_embeds": rand(B, 5, 12, seed=1)}, guidance_scale=3.0)
    want = result(pipe, call)
    assert error(result(fg.guide(pipe), call), want) <= LIMIT
    assert fg.family(pipe).argument is None
    assert error(result(fg.guide(pipe, fg.PAG(2.0, layers="mid")), call), want) > 1e-3
    with pytest.raises(ValueError, match="needs a negative condition"):
        fg.guide(pipe, fg.CFG(3.0))


def test_tokens_of_other_images():
    """They are given to the network behind the latents' own, of which the prediction is."""
    net = net_of("qwen-image")
    made = whole(net, 1e-3, "it is a test")
    x, other, text = rand(B, 24, 16, seed=1), rand(B, 6, 16, seed=2), rand(B, 5, 12, seed=3)
    shapes = [[(1, 4, 6), (1, 2, 3)]] * B
    call = {"encoder_hidden_states": text, "img_shapes": shapes}
    call["encoder_hidden_states_mask"] = torch.ones(B, 5, dtype=torch.bool)
    t = torch.full((B,), 300.0)
    whole_input = torch.cat([x, other], 1)
    with torch.no_grad():
        want = net(whole_input, timestep=t / 1000, return_dict=False, **call)[0][:, :24]
    told = made.gather((), {"hidden_states": whole_input, "timestep": t, **call})
    assert torch.equal(told.x, x)
    with torch.no_grad():
        got = made(told.x, t, {**told.fixed, **told.varying})
    torch.testing.assert_close(got, want)
    assert made.grid(24, (24, 16)) == (4, 6)


def test_times_of_tokens():
    """Of Wan 2.2's 5B: its CFG is its own; a perturbed copy would run at another time."""
    pipe, call = built("wan")
    pipe.register_to_config(expand_timesteps=True)
    want = result(pipe, call)
    assert error(result(fg.guide(pipe), call), want) <= LIMIT
    with pytest.raises(ValueError, match="a time for each token"):
        result(fg.guide(pipe, fg.PAG(2.0, layers="mid")), call)
