"""What looks at a run between its evaluations, and may change it: callbacks, and what they see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor

from fastguide.engine.plan import PREVIEW, Plan
from fastguide.process import Level


class Stop(Enum):
    """What a callback returns to end the run."""

    STOP = "stop"

    def __repr__(self) -> str:
        return "fastguide.STOP"


STOP = Stop.STOP


@dataclass(frozen=True)
class Progress:
    """What a callback sees after an evaluation; the tensors are views, valid until the next one.

    Args:
        evaluation: 1 ... evaluations.
        at: the level of the evaluation.
        x: fp32 `[B, *shape]`, after the update. What is written to it in place is what the next
            evaluation sees; after the last one, the sample.
        denoised: fp32 `[B, *shape]`, the guided denoised image of this evaluation.
    """

    evaluation: int
    evaluations: int
    at: Level
    x: Tensor
    denoised: Tensor


Callback = Callable[[Progress], Any]
# Given the row's index and the slots `[slots, B, *shape]` after its update. It may write to x, the
# first slot; True ends the run.
Watch = Callable[[int, Tensor], bool]


def watching(callback: Callback, plan: Plan, batch: int) -> Watch:
    """Shows `callback` the first `batch` samples after each evaluation of the plan, which keeps its
    denoised images.
    """
    numbers = {e: n for n, e in enumerate((e for e, r in enumerate(plan.rows) if r.at), 1)}
    preview = plan.slots.index(PREVIEW)

    def watch(e: int, state: Tensor) -> bool:
        at = plan.rows[e].at
        if at is None:
            return False
        x, denoised = state[0][:batch], state[preview][:batch]
        return callback(Progress(numbers[e], plan.evaluations, at, x, denoised)) is STOP

    return watch
