"""What a captured graph depends on of a plan: all but its numbers, which the graph reads."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import torch

from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.guidance.base import Branch


def structure(plan: Plan, dtype: torch.dtype) -> Hashable:
    """Equal for plans that one graph can run: other levels, scales, weights, eta and clamps may
    differ, as long as the same rows read, write and draw the same for the same patterns.

    Args:
        dtype: the network's; in fp32 it reads x itself where that is not scaled.
    """
    numbers: dict[int, int] = {}  # of the rescales, by identity: deltas share one or do not
    return (
        plan.slots,
        plan.threshold,
        plan.start,
        None if plan.path is None else plan.path.nodes.shape,
        tuple(
            (
                None if row.pattern is None else _form(row.pattern, numbers),
                row.reads,
                row.writes,
                row.draws,
                row.learned,
                row.extra,
                row.after,
                row.path,
                row.input_scale == 1.0 and dtype == torch.float32,
            )
            for row in plan.rows
        ),
    )


def _form(pattern: Pattern, numbers: dict[int, int]) -> Hashable:
    """The pattern with its rescales by number and settings."""

    def form(branch: Branch) -> Hashable:
        rescales = tuple(
            (numbers.setdefault(id(one), len(numbers)), one.share, one.space)
            for one in branch.rescales
        )
        return (replace(branch, rescales=()), rescales)

    held = tuple(branch in pattern.held for branch in pattern.branches)
    return (tuple(map(form, pattern.branches)), held, pattern.nag, pattern.refreshed)
