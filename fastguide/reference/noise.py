"""Philox4x32-10 and Box-Muller, as in csrc/philox.h."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al. 2011) on int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        high0, low0 = (product0 >> 32) & _LOW32, product0 & _LOW32
        high1, low1 = (product1 >> 32) & _LOW32, product1 & _LOW32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _LOW32, (k1 + 0xBB67AE85) & _LOW32
    return [c0, c1, c2, c3]


def noise(seeds: Tensor, evaluation: int, numel: int) -> Tensor:
    """Standard normals fp64 `[B, numel]` by (seed, evaluation, element): see csrc/philox.h."""
    blocks = torch.arange((numel + 3) // 4, device=seeds.device)
    shape = (seeds.numel(), blocks.numel())
    zero = torch.zeros(shape, dtype=torch.int64, device=seeds.device)
    counter = [zero + (blocks & _LOW32), zero + (blocks >> 32), zero + evaluation, zero]
    column = seeds.unsqueeze(1)
    words = philox4x32(counter, [zero + (column & _LOW32), zero + ((column >> 32) & _LOW32)])
    top = [word >> 8 for word in words]
    out = []
    for radius_word, angle_word in ((top[0], top[1]), (top[2], top[3])):
        # u is formed in fp32, where 2^24 - 1 + 1/2 rounds: the kernels' uniform, bit for bit
        u = (radius_word.float() + 0.5) * 2.0**-24
        radius = (-2.0 * u.double().log()).sqrt()
        angle = angle_word.double() * (2.0 * math.pi * 2.0**-24)
        out += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(out, dim=2).flatten(1)[:, :numel]
