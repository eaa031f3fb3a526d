"""Guidance as a component of diffusers' modular pipelines, beside what their own guiders do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import fastguide as fg
from fastguide.guidance.described import described, guidance_of

diffusers = pytest.importorskip("diffusers")
guiders = pytest.importorskip("diffusers.guiders")

from family_pipelines import net_of  # noqa: E402
from test_families import by_hand, left_out  # noqa: E402
from tiny_diffusers import B, filled, rand  # noqa: E402

LAYER, GRID, STEPS = "blocks.1", (3, 2, 4), 4
X = rand(B, 4, 3, 4, 8, seed=1)
POSITIVE, NEGATIVE = rand(B, 5, 12, seed=2), rand(B, 3, 12, seed=3)
SLG = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}


def looped(guider, net, steps=STEPS):
    """The denoising loop of a modular pipeline, as Wan's has it."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    x = X
    for i, t in enumerate(scheduler.timesteps):
        guider.set_state(i, steps, t)
        states = guider.prepare_inputs({"encoder_hidden_states": (POSITIVE, NEGATIVE)})
        for state in states:
            guider.prepare_models(net)
            text = state.encoder_hidden_states
            with torch.no_grad():
                state.noise_pred = net(x, t.expand(B), text, return_dict=False)[0]
            guider.cleanup_models(net)
        x = scheduler.step(guider(states)[0], t, x, return_dict=False)[0]
    return x


class ByHand:
    """Predictions of a positive, a negative and a perturbed network, combined by a formula."""

    def __init__(self, net, formula, perturbed=None):
        self.net, self.formula, self.perturbed = net, formula, perturbed

    def __call__(self):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(STEPS)
        x = X
        for i, t in enumerate(scheduler.timesteps):
            with torch.no_grad():
                c, u = (
                    self.net(x, t.expand(B), text, return_dict=False)[0]
                    for text in (POSITIVE, NEGATIVE)
                )
                p = c
                if self.perturbed is not None:
                    p = self.perturbed(x, t.expand(B), POSITIVE, return_dict=False)[0]
            x = scheduler.step(self.formula(i, c, u, p), t, x, return_dict=False)[0]
        return x


def skipping(net):
    return left_out(SimpleNamespace(net=net, family="wan"), LAYER).net


def attending_to_itself(net):
    return by_hand(SimpleNamespace(net=net), "identity", [LAYER], GRID, "first").net


def close(got, want):
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def apart(got, want):
    assert (got - want).abs().max() > 1e-3 * want.abs().max()


@pytest.fixture
def net():
    return net_of("wan")


CASES = {
    "cfg": (fg.CFG(4.0), None, lambda i, c, u, p: u + 4.0 * (c - u)),
    "cfg, early": (
        fg.CFG(4.0, fg.interval(0.0, 0.3, over="step")),
        None,
        lambda i, c, u, p: u + 4.0 * (c - u) if i < 2 else c,
    ),
    "pag": (fg.PAG(2.0, layers=LAYER), attending_to_itself, lambda i, c, u, p: c + 2.0 * (c - p)),
    "cfg and slg": (
        fg.CFG(4.0) + fg.SLG(2.0, layers=LAYER),
        skipping,
        lambda i, c, u, p: u + 4.0 * (c - u) + 2.0 * (c - p),
    ),
    "norm": (
        fg.CFGNorm(fg.CFG(4.0)),
        None,
        lambda i, c, u, p: (
            (u + 4.0 * (c - u))
            * (c.norm(dim=1, keepdim=True) / (u + 4.0 * (c - u)).norm(dim=1, keepdim=True)).clamp(
                max=1.0
            )
        ),
    ),
    "off": (fg.CFG(1.0), None, lambda i, c, u, p: c),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_formula(name, net):
    """Twice, as another run begins anew; and nothing is left on the network."""
    guidance, perturb, formula = CASES[name]
    guider = fg.Guider(guidance)
    before = dict(net.__dict__)
    want = ByHand(net, formula, perturb and perturb(net))()
    close(looped(guider, net), want)
    close(looped(guider, net), want)
    assert net.__dict__ == before
    if name != "off":
        apart(want, ByHand(net, CASES["off"][2])())


def test_conditions(net):
    """Negative rows are asked for where a step needs them, and of encoders where any does."""
    guider = fg.Guider(fg.CFG(4.0, fg.interval(0.0, 0.3, over="step")))
    assert guider.num_conditions == 2
    looped(guider, net)
    assert guider.num_conditions == 2
    guider.set_state(3, 4, torch.tensor(10.0))
    assert guider.num_conditions == 1
    assert fg.Guider(fg.PAG(2.0, layers=LAYER)).num_conditions == 1
    guider.disable()
    assert guider.num_conditions == 1
    close(looped(guider, net), ByHand(net, CASES["off"][2])())


def test_momentum_and_zero_steps(net):
    """What is kept from step to step, and what belongs to the first, as in a pipeline's own run."""
    for guidance in (
        fg.APG(fg.CFG(4.0), radius=3.0, momentum=-0.5),
        fg.CFGZeroStar(fg.CFG(4.0), zero_steps=1),
        fg.CFG(4.0, every=2),
    ):
        pipe = diffusers.WanPipeline(
            None, None, None, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), net
        )
        pipe.set_progress_bar_config(disable=True)
        call = {"prompt_embeds": POSITIVE, "negative_prompt_embeds": NEGATIVE, "num_frames": 9}
        call |= {"height": 32, "width": 64, "latents": X, "num_inference_steps": STEPS}
        guided = fg.guide(pipe, guidance)
        with torch.no_grad():
            want = guided(**call, output_type="latent", return_dict=False)[0]
        close(looped(fg.Guider(guidance), net), want)


def test_latents_with_other_channels():
    """HunyuanVideo 1.5, whose pipeline has a guider: as its own, and with a layer left out."""
    net = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=12,
        text_embed_2_dim=12,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
    )
    net = filled(net)
    texts = [rand(B, 5, 12, seed=seed) for seed in (2, 3)]
    mask = torch.ones(B, 5)
    given = {
        "encoder_hidden_states": tuple(texts),
        "encoder_attention_mask": (mask, mask),
        "encoder_hidden_states_2": tuple(texts[::-1]),
        "encoder_attention_mask_2": (mask, mask),
    }
    inputs = torch.cat([X, torch.zeros(B, 5, *X.shape[2:])], 1)
    image = torch.zeros(B, 3, 12)

    def predicted(guider):
        t = torch.tensor(700.0)
        guider.set_state(1, 4, t)
        states = guider.prepare_inputs(given)
        for state in states:
            guider.prepare_models(net)
            own = {name: getattr(state, name) for name in given}
            known = {"image_embeds": image, "timestep": t.expand(B), "return_dict": False}
            with torch.no_grad():
                state.noise_pred = net(hidden_states=inputs, **known, **own)[0]
            guider.cleanup_models(net)
        return guider(states)[0]

    want = predicted(guiders.ClassifierFreeGuidance(guidance_scale=4.0))
    close(predicted(fg.Guider(fg.CFG(4.0))), want)
    with_layer = predicted(fg.Guider(fg.CFG(4.0) + fg.SLG(2.0, layers="transformer_blocks.1")))
    apart(with_layer, want)
    off = predicted(fg.Guider(fg.CFG(4.0) + fg.SLG(1e-30, layers="transformer_blocks.1")))
    close(off, want)


def test_in_a_modular_pipeline(net, tmp_path):
    """As a component that is given, saved and loaded, beside its own guider with the same scale."""
    from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep

    pipe = WanCoreDenoiseStep().init_pipeline()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    call = {"prompt_embeds": POSITIVE, "negative_prompt_embeds": NEGATIVE[:, :1].repeat(1, 5, 1)}
    call |= {"height": 32, "width": 64, "num_frames": 9, "num_inference_steps": 3, "latents": X}

    def run(guider):
        pipe.update_components(transformer=net, scheduler=scheduler, guider=guider)
        return pipe(**call, output="latents")

    want = run(guiders.ClassifierFreeGuidance(guidance_scale=4.0))
    ours = fg.Guider(fg.CFG(4.0))
    close(run(ours), want)
    ours.save_pretrained(tmp_path)
    loaded = fg.Guider.from_pretrained(tmp_path)
    assert described(loaded.guidance) == described(ours.guidance)
    close(run(loaded), want)
    spec = pipe.get_component_spec("guider")
    assert spec.type_hint is fg.Guider


DATA = [
    fg.CFG(4.0, fg.interval(0.1, 2.0)) + fg.SEG(2.0, layers=["blocks.1", 2], sigma=(0.0, 1.0, 2.0)),
    fg.APG(fg.CFG(4.0), radius=2.5).rescale(0.5) + fg.SLG(layers=1, on="negative"),
    fg.CFGNorm(fg.CFG([4.0, 3.0, 2.0, 1.0]), axes=-1, grows=True) + fg.NAG(3.0, layers="mid"),
    fg.SEG(1.0),
]


@pytest.mark.parametrize("guidance", DATA, ids=str)
def test_guidance_as_data(guidance):
    import json

    data = described(guidance)
    again = guidance_of(json.loads(json.dumps(data)))
    assert described(again) == data
    assert [t.branch.how for t in again.terms()] == [t.branch.how for t in guidance.terms()]


def test_what_is_no_data():
    with pytest.raises(TypeError, match="scale is a Tensor, which JSON cannot hold"):
        fg.Guider(fg.CFG(torch.ones(2)))
    with pytest.raises(ValueError, match="kind is 'Magic'"):
        fg.Guider({"kind": "Magic"})
    with pytest.raises(ValueError, match="neither other networks"):
        fg.Guider(fg.ICG(2.0))


# What their own guiders do otherwise: docs/families.md has a row for each.


def test_a_perturbation_alone_has_its_weight(net):
    """Theirs lets the scale count from 1 where CFG is off, from 0 beside it; ours from 0."""
    made = guiders.SkipLayerGuidance(1.0, 2.8, skip_layer_guidance_layers=[1], **SLG)
    want = fg.CFG(1.0) + fg.SLG(2.8, layers=[1])
    assert described(fg.from_guider(made)) == described(want)
    ours = looped(fg.Guider(fg.from_guider(made)), net)
    close(ours, ByHand(net, lambda i, c, u, p: c + 2.8 * (c - p), skipping(net))())
    theirs = ByHand(net, lambda i, c, u, p: c + 1.8 * (c - p), skipping(net))()
    apart(ours, theirs)


def test_a_start_belongs_to_its_steps(net):
    """Theirs is never active at the step where it starts."""
    made = guiders.SkipLayerGuidance(
        4.0, 2.0, 0.0, 0.5, skip_layer_guidance_layers=[1], start=0.0, stop=1.0
    )
    want = ByHand(
        net,
        lambda i, c, u, p: u + 4.0 * (c - u) + (2.0 * (c - p) if i < 2 else 0.0),
        skipping(net),
    )()
    pipe = diffusers.WanPipeline(
        None, None, None, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), net
    )
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt_embeds": POSITIVE, "negative_prompt_embeds": NEGATIVE, "num_frames": 9}
    call |= {"height": 32, "width": 64, "latents": X, "num_inference_steps": STEPS}
    with torch.no_grad():
        got = fg.guide(pipe, fg.from_guider(made))(**call, output_type="latent", return_dict=False)
    close(got[0], want)
    made.set_state(0, STEPS, torch.tensor(1000.0))
    assert made.num_conditions == 2  # and no third for the skipped layer


def test_magnitude_of_images():
    """Theirs raises on four dimensions."""
    made = guiders.MagnitudeAwareGuidance(guidance_scale=10.0)
    c, u = rand(B, 4, 8, 8, seed=4), rand(B, 4, 8, 8, seed=5)
    made.set_state(0, STEPS, torch.tensor(900.0))
    with pytest.raises((RuntimeError, TypeError, IndexError, ValueError)):
        made.forward(c, u)
    assert described(fg.from_guider(made)) == described(fg.MAMBO(fg.CFG(10.0), 8.0))


def test_blocks_do_not_run_twice(net):
    """Each branch of theirs is a forward of its own; a branch of ours begins at its layer."""
    count = [0] * len(net.blocks)

    def counting(i, forward):
        def run(*args, **kwargs):
            count[i] += 1
            return forward(*args, **kwargs)

        return run

    for i, block in enumerate(net.blocks):
        block.forward = counting(i, block.forward)
    looped(fg.Guider(fg.SLG(2.0, layers="blocks.2")), net)
    looped(fg.Guider(fg.SLG(2.0, layers="blocks.2")), net)
    first = count.copy()
    looped(fg.Guider(fg.SLG(2.0, layers="blocks.2")), net)
    runs = [after - before for after, before in zip(count, first, strict=True)]
    assert runs[0] == runs[1]
    assert runs[3] > runs[0]


def test_from_guider():
    """What they say, in our words."""
    made = guiders.ClassifierFreeGuidance(3.0, 0.5, use_original_formulation=True)
    assert described(fg.from_guider(made)) == described(fg.CFG(4.0).rescale(0.5))
    zero = guiders.ClassifierFreeZeroStarGuidance(5.0, 2)
    assert described(fg.from_guider(zero)) == described(fg.CFGZeroStar(fg.CFG(5.0), 2))
    apg = guiders.AdaptiveProjectedGuidance(7.0, -0.5, 10.0, eta=0.2)
    assert described(fg.from_guider(apg)) == described(fg.APG(fg.CFG(7.0), 0.2, 10.0, -0.5))
    seg = guiders.SmoothedEnergyGuidance(4.0, 2.0, seg_guidance_layers=[1])
    assert described(fg.from_guider(seg)) == described(fg.CFG(4.0) + fg.SEG(2.0, layers=[1]))
    with pytest.raises(ValueError, match="guider is a str"):
        fg.from_guider("cfg")
