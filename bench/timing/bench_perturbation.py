"""Perturbed rows that fork from their source against two (three) full passes: time and FLOPs.

The twin runs the same network, kernels and perturbation on all rows from the first stage on, in one
batch: what is left is what sharing the prefix is worth. `pytest -rP` prints the share of the FLOPs,
which the time should come close to.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastguide.engine.program import make_program
from fastguide.engine.rows import Context, bind, run_program
from fastguide.guidance.base import Branch
from fastguide.nets import DiT, UNet
from fastguide.staging.contract import Routing, Segment, choose_layers
from fastguide.staging.perturbation import BlurredQueries, Identity

SHAPE, BATCH = (4, 32, 32), 4
PAG, SEG, SEG_FINITE = Identity(), BlurredQueries(math.inf), BlurredQueries(2.0)


def dit():
    """Depth 12 on 256 tokens."""
    return DiT(4, patch=2, width=384, depth=12, attention_heads=6, classes=10)


def unet():
    """Three levels, attention in two of them and in the middle."""
    return UNet(4, width=64, multipliers=(1, 2, 3), res_blocks=2, attention=(2, 4), classes=10)


def randomised(net):
    """Any weights but zeros."""
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return net.eval().requires_grad_(False)


def flops(call):
    """Of one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def passes(net, how, layers, conds):
    """(ours, full passes, one full pass): conditions `conds` and a perturbed copy of the first."""
    names = choose_layers(layers, net)
    clean = [Branch("cond"), Branch("negative")][:conds]
    rows = [*clean, Branch("cond", how=how, layers=names)]
    x, t = torch.randn(BATCH, *SHAPE), torch.tensor(300.0)
    labels = {"cond": torch.arange(BATCH) % 10, "negative": torch.full((BATCH,), 10)}
    program = make_program(rows, net)
    bound = bind(program, labels)
    count = len(rows)
    segments = {name: (Segment(0, conds), Segment(conds, count, how)) for name in names}
    all_x, all_t = x.repeat(count, 1, 1, 1), t.expand(count * BATCH)
    all_labels = torch.cat([labels[row.cond] for row in rows])

    def ours():
        return run_program(program, x, t, bound, BATCH, SHAPE, Context())

    def full():
        state = (all_x, all_t)
        for stage in net.stages:
            state = stage.run(state, all_labels, Routing(segments))
        return state

    def one():
        return net(x, t.expand(BATCH), labels["cond"])

    for row, want in zip(rows, full().split(BATCH), strict=True):
        torch.testing.assert_close(ours()[row], want, rtol=1e-3, atol=1e-3)
    return ours, full, one


CASES = [
    ("PAG, mid", PAG, ("mid",), 1, 0.79),
    ("PAG, from the middle on", PAG, tuple(range(6, 12)), 1, 0.79),
    ("SEG inf, mid", SEG, ("mid",), 1, 0.79),
    ("SEG inf, from the middle on", SEG, tuple(range(6, 12)), 1, 0.79),
    ("SEG sigma 2, mid", SEG_FINITE, ("mid",), 1, 0.79),
    ("CFG and PAG, mid", PAG, ("mid",), 2, 0.87),
]

UNET_CASES = [
    ("PAG, mid", PAG, ("mid",), 1),
    ("SEG inf, mid", SEG, ("mid",), 1),
    ("CFG and PAG, mid", PAG, ("mid",), 2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_dit(ratio, case):
    """A DiT of depth 12."""
    name, how, layers, conds, limit = case
    torch.manual_seed(0)
    net = randomised(dit())
    check(ratio, f"DiT, {name}", passes(net, how, layers, conds), conds, limit)


@pytest.mark.parametrize("case", UNET_CASES, ids=lambda case: case[0])
def test_unet(ratio, case):
    """A U-Net, whose second half is the larger one: half a pass is more than half."""
    name, how, layers, conds = case
    torch.manual_seed(0)
    net = randomised(unet())
    check(ratio, f"U-Net, {name}", passes(net, how, layers, conds), conds, 1.0)


def check(ratio, name, calls, conds, limit):
    """The time, held to `limit` and to 5 % above the share of the FLOPs."""
    ours, full, one = calls
    share, plain = flops(ours) / flops(full), flops(ours) / ((conds + 1) * flops(one))
    print(f"{name}: {share:.3f} of the twin's FLOPs, {plain:.3f} of {conds + 1} clean passes")
    ratio(f"{name}, against {conds + 1} full passes", ours, full, limit=min(limit, 1.05 * share))


def test_a_layer_under_seg_is_cheaper_than_clean(ratio):
    """SEG at infinity: one query a head, no projection of N tokens."""
    torch.manual_seed(0)
    net = randomised(dit())
    attention = net.blocks[6].attention
    tokens = torch.randn(BATCH, 256, 384)
    routing = Routing({attention.name: (Segment(0, 1, SEG),)})
    ratio(
        "attention under SEG at infinity, against clean",
        lambda: attention(tokens, (16, 16), routing),
        lambda: attention(tokens, (16, 16)),
        limit=1.0,
        rounds=15,
    )
