"""What steers a pipeline beside its prompt steers it with us: ControlNets, adapters, edits."""

from __future__ import annotations

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from tiny_controls import EDITING, STEERED, call_of, picture  # noqa: E402
from tiny_pipelines import PIPES, SD_NOISE, result  # noqa: E402

LIMIT = 1e-4


def off(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def run(pipe, family, **changes):
    torch.manual_seed(0)  # images of some are encoded by noise of no generator
    return result(pipe(**call_of(pipe, family, **changes)))


@pytest.mark.parametrize("name", STEERED)
def test_what_steers_the_original_steers_ours(name):
    make, family, steers, strength = STEERED[name]
    pipe, knob = make(), PIPES[family][2]
    want = run(pipe, family, **{knob: 4.0}, **steers())
    guided = fg.guide(pipe)
    assert off(run(guided, family, **{knob: 4.0}, **steers()), want) <= LIMIT
    less = {**steers(), strength: 0.001} if strength else halved(steers())
    if "T2I" not in name:  # whose features the tiny network's norms rescale, however many there are
        assert off(run(guided, family, **{knob: 4.0}, **less), want) > 10 * LIMIT
    if family == "sana":  # its attention is linear, which is met in stages alone
        with pytest.raises(ValueError, match="no self-attention was met"):
            run(fg.guide(pipe, fg.PAG(1.0)), family, **steers())
        return
    nearly = fg.guide(pipe, fg.CFG(4.0) + fg.PAG(1e-30))  # rows of our own, not the pipeline's
    assert off(run(nearly, family, **steers()), want) <= LIMIT
    pag = fg.guide(pipe, fg.CFG(4.0) + fg.PAG(2.0))
    assert off(run(pag, family, **steers()), want) > LIMIT  # little beside an adapter


def halved(steers):
    return {n: [0.5 * v[0]] if isinstance(v, list) else 0.5 * v for n, v in steers.items()}


@pytest.mark.parametrize("scheduler", ["own", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("name", EDITING)
def test_an_edit_combines_three_rows_as_its_pipeline_does(name, scheduler):
    make, family = EDITING[name]
    pipe = make()
    if scheduler != "own":
        pipe.scheduler = getattr(diffusers, scheduler)(**SD_NOISE)
    side = {"image": picture(32), "height": 32, "width": 32}

    def call(**more):
        return call_of(pipe, family, **{**side, **more})

    told = {"guidance_scale": 5.0, "image_guidance_scale": 1.7}
    want = result(pipe(**call(**told)))
    assert off(result(fg.guide(pipe)(**call(**told))), want) <= LIMIT
    assert off(result(pipe(**call(**{**told, "image_guidance_scale": 1.2}))), want) > 10 * LIMIT
    alone = {"guidance_scale": 1.0}
    assert off(result(fg.guide(pipe)(**call(**alone))), result(pipe(**call(**alone)))) <= LIMIT
    with pytest.raises(ValueError, match="give guidance_scale and image_guidance_scale in the"):
        fg.guide(pipe, fg.CFG(3.0))


def test_guidance_is_added_to_an_edit_once():
    """One step: the pipeline's own prediction, and what PAG adds to the positive row."""
    make, family = EDITING["SD InstructPix2Pix"]
    pipe = make()
    given = {"image": picture(32), "height": 32, "width": 32, "num_inference_steps": 1}
    told = {"guidance_scale": 5.0, "image_guidance_scale": 1.7}
    start = torch.ones(2, 4, 16, 16)
    out = {}
    for weight in (0.0, 2.0, 4.0):
        guided = fg.guide(pipe, fg.PAG(weight))
        call = call_of(pipe, family, **given, **told, latents=start.clone())
        out[weight] = result(guided(**call))
    moved = out[2.0] - out[0.0]
    assert off(out[4.0] - out[0.0], 2 * moved) <= 10 * LIMIT
    alone = {"guidance_scale": 1.0}
    one, two = (
        result(fg.guide(pipe, fg.PAG(w))(**call_of(pipe, family, **given, **alone, latents=start)))
        for w in (0.0, 2.0)
    )
    assert off(two - one, moved) <= 10 * LIMIT
