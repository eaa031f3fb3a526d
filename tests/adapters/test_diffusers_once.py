"""What an accelerated pipeline computes once a run, once for all rows, or not at all."""

from __future__ import annotations

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from tiny_diffusers import NETS, B, rand, sd  # noqa: E402
from tiny_pipelines import PIPES, SD_NOISE, result, sd_call, sd_pipe  # noqa: E402
from watched import watching  # noqa: E402

from fastguide.adapters.diffusers.networks import adapt  # noqa: E402

EMBEDDERS = {
    "sd": ("unet", ["time_embedding"]),
    "sdxl": ("unet", ["time_embedding"]),
    "sd3": ("transformer", ["time_text_embed.timestep_embedder"]),
    "flux": ("transformer", ["time_text_embed.timestep_embedder"]),
    "pixart": ("transformer", ["adaln_single.emb.timestep_embedder", "adaln_single.linear"]),
    "sana": ("transformer", ["time_embed.emb.timestep_embedder", "time_embed.linear"]),
    "dit": (
        "transformer",
        [f"transformer_blocks.{i}.norm1.emb.timestep_embedder" for i in range(3)],
    ),
}


def rows_of(net, names, run):
    """The rows that each module is given in `run()`, as they come."""
    rows = {name: [] for name in names}
    with watching(net, names, lambda name, out: rows[name].append(len(out))):
        run()
    return rows


@pytest.mark.parametrize("family", PIPES)
def test_times_are_embedded_once(family):
    make, call, _ = PIPES[family]
    pipe = make()
    attribute, names = EMBEDDERS[family]
    guided = fg.guide(pipe, fg.CFG(4.0) + fg.PAG(1.0))
    rows = rows_of(getattr(pipe, attribute), names, lambda: guided(**call(num_inference_steps=5)))
    assert list(rows.values()) == [[1 + 5]] * len(names)


@pytest.mark.parametrize("family", ["sd", "pixart", "dit"])
def test_times_are_embedded_once_by_the_sampler(family):
    pipe = PIPES[family][0]()
    attribute, names = EMBEDDERS[family]
    net = getattr(pipe, attribute)
    model = fg.from_diffusers(net, pipe.scheduler, (4, 16, 16))
    cond = {
        "sd": rand(B, 7, 24),
        "pixart": rand(B, 7, 20),
        "dit": torch.tensor([3, 7]),
    }[family]
    rows = rows_of(net, names, lambda: fg.sample(model, cond, fg.PAG(1.0), steps=5, seeds=range(B)))
    assert list(rows.values()) == [[1 + 5]] * len(names)


@pytest.mark.parametrize("family", NETS)
def test_a_table_of_times_is_each_by_itself(family):
    make, call = NETS[family]
    net = adapt(make())
    t = torch.tensor([1.0, 250.0, 999.0])
    table = net.embed_times(t)
    for k in range(len(t)):
        one = net.of_times(t[k : k + 1])
        assert (table[k] - one[0]).abs().max() <= 1e-5 * one.abs().max()
    assert (table[0] - table[1]).abs().max() > 0.1 * table[0].abs().max()
    args, kwargs = call()
    x, cond, _ = net.gather((*args, torch.tensor(1.0)), kwargs)
    x, given = net.unpack(x), t[1].expand(B)
    with torch.no_grad():
        want = net(x, given, cond)
        got = net(x, table[1].expand(B, *table.shape[1:]), cond)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


class Coarse(torch.nn.Linear):
    """Rounds its input by the largest of all rows, as dynamic quantisation does."""

    def forward(self, x):
        step = x.abs().max() / 8
        return super().forward((x / step).round() * step)


def test_times_are_embedded_one_by_one_where_rows_are_not_apart():
    net = sd()
    for name in ("linear_1", "linear_2"):
        old = getattr(net.time_embedding, name)
        new = Coarse(old.in_features, old.out_features)
        new.load_state_dict(old.state_dict())
        setattr(net.time_embedding, name, new)
    pipe = sd_pipe(diffusers.EulerDiscreteScheduler(**SD_NOISE), net)
    want = result(pipe(**sd_call(guidance_scale=4.0)))
    got = []
    guided = fg.guide(pipe, fg.CFG(4.0))
    rows = rows_of(net, ["time_embedding"], lambda: got.append(result(guided(**sd_call()))))
    got = got[0]
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert rows["time_embedding"] == [1] * 5


def test_runs_on_one_network_do_not_meet():
    """Two pipelines of one network, the one's step within the other's."""
    pipe = sd_pipe()
    guided = fg.accelerate(pipe, fg.CFG(4.0))
    other = fg.accelerate(pipe, fg.PAG(2.0))
    want = result(guided(**sd_call())), result(other(**sd_call(num_inference_steps=3)))
    inner = []

    def between(pipe, step, timestep, kwargs):
        inner.append(result(other(**sd_call(num_inference_steps=3))))
        return kwargs

    outer = result(guided(**sd_call(callback_on_step_end=between)))
    assert torch.equal(outer, want[0])
    assert all(torch.equal(one, want[1]) for one in inner)


def test_text_is_projected_once():
    pipe = sd_pipe()
    calls = []
    names = [n for n, _ in pipe.unet.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]
    with watching(pipe.unet, names, lambda *_: calls.append(1)):
        fg.guide(pipe, fg.CFG(4.0))(**sd_call(num_inference_steps=5))
        assert len(calls) == len(names)
        calls.clear()
        model = fg.from_diffusers(pipe.unet, pipe.scheduler)
        text = rand(B, 7, 24, seed=1)
        fg.sample(model, text, fg.CFG(4.0), steps=5, seeds=range(B), negative=-text)
        assert len(calls) == 2 * len(names)


def test_rows_that_are_off_are_not_run():
    pipe = sd_pipe()
    half = fg.CFG(4.0, schedule=lambda at: float(at.t > 500))
    for guidance, want in ((half + fg.PAG(1.0), [3, 3, 2, 2]), (half, [2, 2, 1, 1])):
        guided = fg.guide(pipe, guidance)
        rows = rows_of(pipe.unet, ["conv_out"], lambda guided=guided: guided(**sd_call()))
        assert rows == {"conv_out": [n * B for n in want]}


def test_the_stem_and_the_prefix_run_once():
    pipe = sd_pipe()
    names = ["conv_in", "down_blocks.0.resnets.0", "down_blocks.1.resnets.0", "mid_block.resnets.1"]
    guided = fg.guide(pipe, fg.CFG(4.0) + fg.PAG(1.0))
    rows = rows_of(pipe.unet, names, lambda: guided(**sd_call(num_inference_steps=1)))
    assert list(rows.values()) == [[B], [B], [2 * B], [3 * B]]
