"""A network with its scheduler samples as the plain loop of the two; what is named wins."""

from __future__ import annotations

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from tiny_diffusers import B, rand, sd, sd3, unet2d  # noqa: E402

STEPS, SCALE = 12, 5.0
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(**BETAS, steps_offset=1),
    "ddim, trailing, v, zero SNR": lambda: diffusers.DDIMScheduler(
        **BETAS, **V, timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False
    ),
    "pndm": lambda: diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**BETAS),
    "euler, leading": lambda: diffusers.EulerDiscreteScheduler(
        **BETAS, timestep_spacing="leading", steps_offset=1
    ),
    "euler, log-linear": lambda: diffusers.EulerDiscreteScheduler(
        **BETAS, interpolation_type="log_linear"
    ),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**BETAS),
    "lms": lambda: diffusers.LMSDiscreteScheduler(**BETAS),
    "dpm++ 2m karras": lambda: diffusers.DPMSolverMultistepScheduler(
        **BETAS, use_karras_sigmas=True
    ),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**BETAS),
    "deis": lambda: diffusers.DEISMultistepScheduler(**BETAS),
}
FLOWS = {
    "flow euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow euler, shifted by size": lambda: diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True
    ),
    "flow heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
}


def plain(scheduler, predict, noise, **told):
    """The loop of diffusers' documentation."""
    scheduler.set_timesteps(STEPS, **told)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        positive, negative = predict(given, t)
        guided = negative + SCALE * (positive - negative)
        x = scheduler.step(guided, t, x).prev_sample
    return x


def check(got, want, limit=1e-4):
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= limit, error


@pytest.mark.parametrize("name", SCHEDULERS)
def test_as_the_scheduler_would(name):
    net, scheduler = sd(), SCHEDULERS[name]()
    text, negative, noise = rand(B, 7, 24), rand(B, 7, 24), rand(B, 4, 16, 16)

    def predict(x, t):
        return (net(x, t, encoder_hidden_states=c).sample for c in (text, negative))

    with torch.no_grad():
        want = plain(SCHEDULERS[name](), predict, noise)
    model = fg.from_diffusers(net, scheduler)
    got = fg.sample(
        model, text, fg.CFG(SCALE), steps=STEPS, seeds=range(B), negative=negative, noise=noise
    )
    if name == "euler, log-linear":  # ends before the data, where its latents are x / alpha
        got = got / model.usual(STEPS).levels.points[-1].alpha
    check(got, want)


@pytest.mark.parametrize("name", FLOWS)
def test_as_the_flow_scheduler_would(name):
    net, scheduler = sd3(), FLOWS[name]()
    texts = [{"text": rand(B, 7, 32), "pooled": rand(B, 64)} for _ in range(2)]
    noise = rand(B, 4, 8, 8)
    told = {}
    if scheduler.config.get("use_dynamic_shifting"):
        told = {"mu": 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)}

    def predict(x, t):
        return (
            net(
                x,
                encoder_hidden_states=c["text"],
                pooled_projections=c["pooled"],
                timestep=t.expand(B),
            ).sample
            for c in texts
        )

    with torch.no_grad():
        want = plain(FLOWS[name](), predict, noise, **told)
    model = fg.from_diffusers(net, scheduler)
    got = fg.sample(
        model, texts[0], fg.CFG(SCALE), steps=STEPS, seeds=range(B), negative=texts[1], noise=noise
    )
    check(got, want)


def test_what_the_caller_names_wins():
    net = sd()
    model = fg.from_diffusers(net, SCHEDULERS["dpm++ 2m karras"]())
    usual = model.usual(STEPS)
    text, noise = rand(B, 7, 24), rand(B, 4, 16, 16)

    def run(**named):
        return fg.sample(model, text, seeds=range(B), steps=STEPS, noise=noise, **named)

    own = run()
    assert torch.equal(own, run(levels=usual.levels, solver=usual.solver))
    # neither the solver nor the spacing that is named changes the other
    other = run(solver=fg.ddim)
    assert torch.equal(other, run(levels=usual.levels, solver=fg.ddim))
    spaced = fg.make_levels(model.process, STEPS, fg.trailing)
    assert torch.equal(run(spacing="trailing"), run(levels=spaced, solver=usual.solver))
    assert not torch.allclose(own, other)


def test_the_scheduler_is_copied():
    scheduler = SCHEDULERS["ddim"]()
    model = fg.from_diffusers(sd(), scheduler)
    before = model.usual(STEPS)
    scheduler.set_timesteps(3)
    scheduler.register_to_config(timestep_spacing="trailing")
    assert model.usual(STEPS) == before
    assert len(scheduler.timesteps) == 3


def test_nag_is_the_identity_before_the_text_is_read():
    net = sd()
    names = [n.removesuffix(".processor") for n in net.attn_processors if "attn1" in n]
    model = fg.from_diffusers(net, SCHEDULERS["ddim"]())
    text, negative, noise = rand(B, 7, 24), rand(B, 7, 24), rand(B, 4, 16, 16)

    def run(guidance):
        away = {"negative": negative} if guidance is not None else {}
        return fg.sample(model, text, guidance, steps=3, seeds=range(B), noise=noise, **away)

    first = next(n for n in names if n.startswith("down_blocks.0.attentions.0"))
    rest = [n for n in names if n != first]
    everywhere = run(fg.NAG(3.0))
    assert torch.equal(everywhere, run(fg.NAG(3.0, layers=rest)))
    assert not torch.allclose(everywhere, run(fg.NAG(3.0, layers=first)))
    torch.testing.assert_close(run(fg.NAG(3.0, layers=first)), run(None), rtol=0, atol=1e-3)


@pytest.mark.parametrize("rows", ["batched", "sequential"])
def test_a_mask_of_rows_that_have_not_begun(rows):
    net = sd()
    layer = next(n.removesuffix(".processor") for n in net.attn_processors if "attn1" in n)
    model = fg.from_diffusers(net, SCHEDULERS["ddim"]())
    text, noise = rand(B, 7, 24), rand(B, 4, 16, 16)

    def run(of):
        guidance = fg.CFG(2.0) + fg.SAG(0.75, of=of, layers=layer)
        sampler = fg.Sampler(model, guidance, steps=3, rows=rows)
        return sampler(text, range(B), negative=text.clone(), noise=noise)

    # under equal conditions the negative rows are the positive ones
    torch.testing.assert_close(run("negative"), run("cond"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance", [None, fg.PAG(2.0)], ids=["plain", "pag"])
def test_what_is_put_on_the_network_later_counts(guidance):
    """Each sampler looks at the modules; one that was made before says that they have changed."""
    net, scheduler = unet2d(), diffusers.DDIMScheduler(clip_sample=False)
    model = fg.from_diffusers(net, scheduler)
    plain = fg.sample(model, None, guidance, steps=2, seeds=[0])
    sampler = fg.Sampler(model, guidance, steps=2)
    hook = net.mid_block.register_forward_hook(lambda module, args, output: 0.5 * output)
    with pytest.raises(ValueError, match="whose modules have changed since the sampler was made"):
        sampler(seeds=[0])
    hooked = fg.sample(model, None, guidance, steps=2, seeds=[0])
    made_now = fg.from_diffusers(net, scheduler)
    assert torch.equal(hooked, fg.sample(made_now, None, guidance, steps=2, seeds=[0]))
    assert (hooked - plain).abs().max() > 0.01
    hook.remove()
    assert torch.equal(plain, fg.sample(model, None, guidance, steps=2, seeds=[0]))
    assert torch.equal(plain, sampler(seeds=[0]))
