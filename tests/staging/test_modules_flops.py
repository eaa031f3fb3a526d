"""Work is not done twice: counted in floating-point operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastguide as fg

WIDTH, DEPTH, SHAPE = 64, 16, (4, 8, 8)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.label = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, x, t, cond):
        tokens = self.enter(x.flatten(2).transpose(1, 2)) + self.label(cond)[:, None]
        for block in self.blocks:
            tokens = block(tokens)
        return self.leave(tokens).transpose(1, 2).reshape(x.shape)


MODEL = fg.Model(Net().eval(), fg.Flow(), fg.Prediction("flow"), SHAPE, null=10, layers="blocks")


def flops(guidance, rows=None):
    sampler = fg.Sampler(MODEL, guidance, steps=1, rows=rows)
    label = torch.tensor([3])
    sampler(label, [1])  # the network is looked at
    with FlopCounterMode(display=False) as counter:
        sampler(label, [1])
    return counter.get_total_flops()


CASES = [
    (fg.CFG(2.0) + fg.PAG(1.0, layers=f"blocks.{DEPTH // 2}"), 3, 0.85),
    (fg.PAG(1.0, layers=f"blocks.{3 * DEPTH // 4}"), 2, 0.65),
]


@pytest.mark.parametrize("rows", ["batched", "sequential"])
@pytest.mark.parametrize(("guidance", "forwards", "share"), CASES, ids=["middle", "last quarter"])
def test_a_branch_costs_what_it_does_not_share(guidance, forwards, share, rows):
    one = flops(None)
    assert one > 0
    assert flops(fg.CFG(2.0)) == 2 * one
    assert flops(guidance, rows) <= share * forwards * one
