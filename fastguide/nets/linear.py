"""Linear maps that are several in one product, each of which can be had alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Joined(nn.Linear):
    """`times` linear maps `[..., inputs]` -> `[..., outputs]` of one input, in one product."""

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__(inputs, times * outputs)
        self.times = times

    def part(self, x: Tensor, index: int) -> Tensor:
        """One of the maps: `[..., outputs]`."""
        return F.linear(x, *self.matrix(index))

    def matrix(self, index: int) -> tuple[Tensor, Tensor]:
        """One of the maps: its weight `[outputs, inputs]` and bias `[outputs]`."""
        weight = self.weight.unflatten(0, (self.times, -1))[index]
        return weight, self.bias.unflatten(0, (self.times, -1))[index]


class OneWay(nn.Module):
    """As `Joined`, on halves: the first half of each output sees the first half of the input only,
    the second sees all of it.
    """

    def __init__(self, inputs: int, outputs: int, times: int = 1) -> None:
        super().__init__()
        self.times = times
        self.first = Joined(inputs // 2, outputs // 2, times)
        self.second = Joined(inputs, outputs // 2, times)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        first, second = self.first(x[..., : x.shape[-1] // 2]), self.second(x)
        if self.times == 1:
            return torch.cat([first, second], -1)
        halves = [half.unflatten(-1, (self.times, -1)) for half in (first, second)]
        return torch.cat(halves, -1).flatten(-2)

    def part(self, x: Tensor, index: int) -> Tensor:
        """One of the maps: `[..., outputs]`."""
        first = self.first.part(x[..., : x.shape[-1] // 2], index)
        return torch.cat([first, self.second.part(x, index)], -1)

    def matrix(self, index: int) -> tuple[Tensor, Tensor]:
        """One of the maps: its weight `[outputs, inputs]`, with zeros, and bias `[outputs]`."""
        (first, first_bias), (second, second_bias) = (
            half.matrix(index) for half in (self.first, self.second)
        )
        return torch.cat([F.pad(first, (0, first.shape[1])), second]), torch.cat(
            [first_bias, second_bias]
        )


def joined(inputs: int, outputs: int, times: int = 1, parts: int = 1) -> Joined | OneWay:
    """`times` maps `[..., inputs]` -> `[..., outputs]`, one-way between two parts."""
    return (OneWay if parts == 2 else Joined)(inputs, outputs, times)
