"""Samples that are not finite are an error, which says where they became so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastguide.engine.plan import Plan


class NonFiniteError(FloatingPointError):
    """Some samples are NaN or infinite. `samples` holds all of them; `evaluations` says for each
    the evaluation (1, 2, ...) at which it first was, or None."""

    def __init__(self, message: str, samples: Tensor, evaluations: list[int | None]) -> None:
        super().__init__(message)
        self.message, self.samples = message, samples
        self.evaluations = evaluations

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.samples, self.evaluations)  # another process's, too


def check_finite(
    plan: Plan, samples: Tensor, first_bad: Tensor, bad_gradient: Tensor, seeds: Tensor
) -> None:
    """Raise NonFiniteError where `first_bad` or `bad_gradient` of `run` name a row of the plan."""
    found = torch.cat([first_bad.long(), bad_gradient.view(-1).amin(keepdim=True)])
    *rows, gradient = found.tolist()  # the run's one wait for the device
    bad = [(row, i) for i, row in enumerate(rows) if row < len(plan.rows)]
    if not bad:
        return
    numbers = [0]
    for row in plan.rows[1:]:
        numbers.append(numbers[-1] + (row.pattern is not None))
    row, i = min(bad)
    pattern = plan.rows[gradient].pattern if gradient <= row else None
    names = {b.potential.name for b in pattern.branches if b.potential} if pattern else set()
    cause = f"; the gradient of the {' or the '.join(sorted(names))} is not" if names else ""
    raise NonFiniteError(
        f"{len(bad)} of {len(rows)} samples are not finite; the first is sample {i} (seed "
        f"{int(seeds[i])}), from evaluation {numbers[row]} of {plan.evaluations} on, "
        f"at {plan.rows[row].at}{cause}",
        samples,
        [numbers[r] if r < len(plan.rows) else None for r in rows],
    )
