"""Who sees which condition, and which head is supervised: single-pass superconditioning's batches.

The idea (madebyollin, "Single-pass Superconditioning", 2025): a condition that is independent of
the image is the same as none, so a head that is supervised only where the condition was drawn at
random learns the unconditional prediction, in the same pass as the conditional one.

Rows of a shuffled batch, by fixed counts, so that no head ever goes without rows:

| rows | cond | negative | supervised | learns |
|---|---|---|---|---|
| `irrelevant` | another row's | null | head 1 | E[target given x] whatever cond says |
| `negative` | another row's | the label | head 1 | E[target given x, negative] whatever cond says |
| `dropout` | null | null | both | unconditional: the null row of two-pass guidance |
| the rest | the label | null or another's | head 0 | E[target given x, cond] whatever negative |

That head learns to lean on cond nevertheless, more so the lower the noise: sampling asks it where
cond agrees with x, and its rows show that once in K times, while the body below it serves the first
head in most rows. In a network with `split=True` cond cannot reach the second head, so `irrelevant`
rows are not needed, and each of the rest with a null negative supervises both heads.

A condition rolled from another row may equal the true one. Those rows stay: the condition must be
INDEPENDENT of the image, and an independent draw among K classes agrees once in K times. To exclude
them would tell head 1 that the image is not of class cond, and it would learn that instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """Shares of a batch. `irrelevant` and `negative` need two heads, `negative` two conditions."""

    irrelevant: float = 0.0
    negative: float = 0.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("irrelevant", "negative", "dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it should lie in [0, 1)")
        if self.irrelevant + self.negative + self.dropout >= 1.0:
            raise ValueError(
                "irrelevant + negative + dropout should be below 1, but they are "
                f"{self.irrelevant}, {self.negative} and {self.dropout}"
            )


@dataclass(frozen=True)
class Assignment:
    """Conditions int64 [B] and the weights fp32 [B] with which each head's loss counts (0 or 1)."""

    cond: Tensor
    negative: Tensor
    head_weights: tuple[Tensor, Tensor]


def assign(
    labels: Tensor, null: int, recipe: Recipe, two_conditions: bool, split: bool = False
) -> Assignment:
    """Apply `recipe` to the `labels` int64 [B] of one shuffled batch.

    Args:
        null: the null class.
        two_conditions: whether the network takes a negative condition.
        split: whether the second head is kept from cond by construction.
    """
    batch = labels.shape[0]
    counts = [
        _count(share, batch) for share in (recipe.irrelevant, recipe.negative, recipe.dropout)
    ]
    if sum(counts) >= batch:
        raise ValueError(f"batch is {batch}, but the recipe's groups alone take {sum(counts)} rows")
    a, b, c = counts[0], counts[0] + counts[1], sum(counts)
    rolled = labels.roll(1)
    cond = torch.cat([rolled[:b], torch.full_like(labels[b:c], null), labels[c:]])
    negative = torch.full_like(labels, null)
    first = torch.ones(batch)
    second = torch.zeros(batch)
    first[:b] = 0.0
    half = c + (batch - c) // 2 if two_conditions else batch
    if recipe.irrelevant or recipe.negative or split:
        second[: half if split else c] = 1.0
    if two_conditions:
        negative[a:b] = labels[a:b]
        negative[half:] = labels.roll(2)[half:]
    return Assignment(cond, negative, (first, second))


def _count(share: float, batch: int) -> int:
    return max(1, round(share * batch)) if share > 0 else 0
