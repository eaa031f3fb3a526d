"""What a user writes without fastguide: guidance and DDIM in plain PyTorch, one line after the
other, for a network that predicts (eps, something else) side by side in its channels.

Conditions of all branches go through the network as one batch, as published pipelines do it; the
network runs in its own dtype, all else in fp32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from fastguide.nets.attention import SelfAttention
from fastguide.process import Level
from fastguide.staging.contract import choose_layers

Guided = Callable[[Tensor, Level], Tensor]  # (x, level) -> the guided eps, fp32


def ddim(x: Tensor, steps: Sequence[tuple[Level, Level]], guided: Guided) -> Tensor:
    """x0 = (x - sigma eps) / alpha; x' = alpha' x0 + sigma' eps."""
    for now, to in steps:
        eps = guided(x, now)
        x0 = (x - now.sigma * eps) / now.alpha
        x = to.alpha * x0 + to.sigma * eps
    return x


def together(*conditions: Any) -> Any:
    """One batch of them all."""
    return tree_map(lambda *parts: torch.cat(parts), *conditions)


def times(x: Tensor, rows: int, now: Level) -> Tensor:
    """The time of `rows` rows."""
    return torch.full((rows,), now.t, device=x.device)


def cfg(net: Any, dtype: torch.dtype, cond: Any, null: Any, scale: float) -> Guided:
    """eps_u + scale (eps_c - eps_u), from 2 B rows."""
    both = together(cond, null)

    def guided(x: Tensor, now: Level) -> Tensor:
        out = net(torch.cat([x, x]).to(dtype), times(x, 2 * len(x), now), both)
        eps = out.chunk(2, 1)[0].float()
        c, u = eps.chunk(2)
        return u + scale * (c - u)

    return guided


def superconditioning(net: Any, dtype: torch.dtype, cond: Any, null: Any, scale: float) -> Guided:
    """The same from the two halves of one output, B rows."""

    def guided(x: Tensor, now: Level) -> Tensor:
        out = net(x.to(dtype), times(x, len(x), now), cond)
        c, u = out.float().chunk(2, 1)
        return u + scale * (c - u)

    return guided


def perturbed(
    net: Any, dtype: torch.dtype, cond: Any, null: Any, scale: float, weight: float
) -> Guided:
    """CFG and `weight (eps_c - eps_p)`, from 3 B rows, of which `net` perturbs the last third."""
    three = together(cond, null, cond)

    def guided(x: Tensor, now: Level) -> Tensor:
        out = net(torch.cat([x, x, x]).to(dtype), times(x, 3 * len(x), now), three)
        c, u, p = out.chunk(2, 1)[0].float().chunk(3)
        return u + scale * (c - u) + weight * (c - p)

    return guided


def reg(net: Any, dtype: torch.dtype, cond: Any, null: Any, scale: float) -> Guided:
    """eps_c + (scale - 1) c (eps_c - eps_u), c = 1 - sigma d(1^T eps_c) / dx: two forward passes,
    and one backward.
    """

    def guided(x: Tensor, now: Level) -> Tensor:
        t = times(x, len(x), now)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            c = net(leaf.to(dtype), t, cond).chunk(2, 1)[0].float()
            (gradient,) = torch.autograd.grad(c.sum(), leaf)
        u = net(x.to(dtype), t, null).chunk(2, 1)[0].float()
        c = c.detach()
        return c + (scale - 1.0) * (1.0 - now.sigma * gradient) * (c - u)

    return guided


class LastThird(nn.Module):
    """A self-attention layer that treats the last third of its rows as PAG or SEG do."""

    def __init__(self, layer: SelfAttention, how: str) -> None:
        super().__init__()
        self.layer, self.how, self.name, self.heads = layer, how, layer.name, layer.heads

    def forward(self, tokens: Tensor, grid: Any = None, routing: Any = None) -> Tensor:
        """The clean rows as always; the others by `how`."""
        rows = len(tokens) // 3
        clean, other = tokens[: 2 * rows], tokens[2 * rows :]
        layer = self.layer
        mixed = layer.proj(self.attend(*self.project(clean)))
        if self.how == "pag":  # every token attends to itself alone
            return torch.cat([mixed, layer.proj(F.linear(other, *layer.qkv.matrix(2)))])
        q, k, v = self.project(other)
        q = q.mean(2, keepdim=True).expand_as(q)  # SEG at infinite sigma
        return torch.cat([mixed, layer.proj(self.attend(q, k, v))])

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """q, k, v `[rows, heads, N, d]`."""
        qkv = self.layer.qkv(tokens).chunk(3, -1)
        return tuple(y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in qkv)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Torch's own attention, heads beside each other again."""
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def with_last_third(net: Any, how: str) -> Any:
    """A copy of `net`, with the same tensors, whose middle layers treat the last third of the rows
    by `how`: "pag" or "seg".
    """
    tensors = {id(t): t for t in (*net.parameters(), *net.buffers())}
    changed = copy.deepcopy(net, tensors)
    wanted = choose_layers(("mid",), net)
    for name, module in list(changed.named_modules()):
        if isinstance(module, SelfAttention) and module.name in wanted:
            parent, _, leaf = name.rpartition(".")
            owner = changed.get_submodule(parent)
            new = LastThird(module, how)
            if isinstance(owner, nn.ModuleDict):
                owner[leaf] = new
            else:
                setattr(owner, leaf, new)
    return changed
