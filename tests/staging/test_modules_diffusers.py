"""Staging by modules does what hand-written stages do, on networks of diffusers that have both."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from tiny_diffusers import NETS, rand  # noqa: E402

from fastguide.adapters.diffusers.flux import image_ids  # noqa: E402
from fastguide.staging.modules import ByModules  # noqa: E402

LIMIT = 1e-5
UNET_LAYERS = [
    f"{part}.attentions.*.transformer_blocks.*"
    for part in ("down_blocks.*", "mid_block", "up_blocks.*")
]
UNET_UNITS = ["down_blocks.*.resnets", "mid_block.resnets", "up_blocks.*.resnets"]
UNET = {"layers": UNET_LAYERS, "parts": ("attn1",), "units": UNET_UNITS, "time": "time_embedding"}
MID = "mid_block.attentions.0.transformer_blocks.0.attn1"
BLOCKS = {"layers": "transformer_blocks", "time": "time_text_embed"}
SETTINGS = {
    "sd": {**UNET, "middle": [MID]},
    "sdxl": {
        **UNET,
        "middle": [f"mid_block.attentions.0.transformer_blocks.{i}.attn1" for i in (0, 1)],
    },
    "sd3": BLOCKS,
    "flux": {**BLOCKS, "layers": ["transformer_blocks", "single_transformer_blocks"]},
    "pixart": {"layers": "transformer_blocks", "time": "adaln_single.emb"},
}


class Plain(nn.Module):
    """The network of diffusers, called as its pipelines do."""

    def __init__(self, family, net):
        super().__init__()
        self.family, self.net = family, net

    def forward(self, x, t, cond):
        text = cond["text"]
        if self.family in ("sd", "sdxl"):
            added = {name: cond[name] for name in ("text_embeds", "time_ids") if name in cond}
            return self.net(x, t, text, added_cond_kwargs=added, return_dict=False)[0]
        if self.family == "sd3":
            return self.net(x, text, cond["pooled"], t * 1000, return_dict=False)[0]
        if self.family == "pixart":
            given = {"encoder_attention_mask": cond["mask"], "added_cond_kwargs": NO_SIZES}
            return self.net(x, text, t, return_dict=False, **given)[0]
        grid = (x.shape[2] // 2, x.shape[3] // 2)
        ids = {"img_ids": image_ids(grid, x.device), "txt_ids": torch.zeros(text.shape[1], 3)}
        tokens = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        out = self.net(
            tokens, text, cond["pooled"], t, guidance=cond["guidance"], return_dict=False, **ids
        )[0]
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, grid), 2)


NO_SIZES = {"resolution": None, "aspect_ratio": None}
SHAPES = {"sd": (4, 16, 16), "sdxl": (4, 16, 16), "sd3": (4, 8, 8), "flux": (4, 8, 16)}


def conds(family):
    """A condition and a negative one."""
    _, kwargs = NETS[family][1](seed=1)
    _, other = NETS[family][1](seed=2)

    def of(given):
        cond = {"text": given["encoder_hidden_states"]}
        for ours, theirs in (("mask", "encoder_attention_mask"), ("pooled", "pooled_projections")):
            if theirs in given:
                cond[ours] = given[theirs]
        if "guidance" in given:
            cond["guidance"] = given["guidance"]
        if family == "sdxl":
            cond |= given["added_cond_kwargs"]
        return cond

    return of(kwargs), of(other)


def scheduler(family):
    if family in ("sd3", "flux"):
        return diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.DDIMScheduler(
        clip_sample=False, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )


LAYER = {
    "sd": "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
    "sdxl": "down_blocks.1.attentions.0.transformer_blocks.1.attn1",
    "sd3": "transformer_blocks.1",
    "flux": "single_transformer_blocks.0",
    "pixart": "transformer_blocks.1",
}


def methods(family):
    some = [LAYER[family], "mid"]
    late = "mid" if family == "sd" else "all"  # where the rows differ by their text
    found = {
        "pag": fg.PAG(2.0, layers=some),
        "seg": fg.SEG(2.0, layers=some),
        "seg of 1": fg.SEG(2.0, layers=some, sigma=1.0),
        "slg": fg.SLG(2.0, layers=LAYER[family]),
        "stg": fg.STG(1.0, layers=some),
        "stg attention": fg.STG(1.0, layers="mid", mode="attention"),
        "tpg": fg.TPG(2.0, layers=some),
        "tsg": fg.TSG(2.0, layers="time"),
        "nag": fg.NAG(3.0, layers=late),
        "nag, pag": fg.NAG(3.0, layers=late) + fg.PAG(2.0, layers=some),
        "two cuts": fg.PAG(2.0, layers="mid") + fg.SLG(1.0, layers=LAYER[family]),
        "negative": fg.PAG(2.0, layers="mid", of="negative"),
    }
    if family in ("sd", "sdxl", "pixart"):
        found["sag"] = fg.SAG(1.0, layers=LAYER[family])
    return found


CASES = [(family, name, "batched") for family in SETTINGS for name in methods(family)]
CASES += [(family, "two cuts", "sequential") for family in SETTINGS]


def both(family):
    net = NETS[family][0]()
    shape = SHAPES.get(family, (4, 8, 8))
    hand = fg.from_diffusers(net, scheduler(family), shape)
    plain = ByModules(Plain(family, net), prefix="net", **SETTINGS[family])
    return hand, replace(hand, net=plain)


@pytest.mark.parametrize(("family", "name", "rows"), CASES, ids=["-".join(c) for c in CASES])
def test_as_by_hand(family, name, rows):
    hand, generic = both(family)
    cond, negative = conds(family)
    guidance = fg.CFG(3.0) + methods(family)[name]
    noise = rand(2, *hand.shape, seed=5)

    def sampled(model, how):
        sampler = fg.Sampler(model, how, steps=2, rows=rows)
        return sampler(cond, [1, 2], negative, noise=noise)

    want, got, off = sampled(hand, guidance), sampled(generic, guidance), sampled(hand, fg.CFG(3.0))
    size = want.abs().max()
    assert (got - want).abs().max() <= LIMIT * size
    assert (off - want).abs().max() > 100 * LIMIT * size
