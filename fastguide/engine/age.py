"""When a held delta is computed anew: for each sample as if it were alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fastguide.process import Level


class Age:
    """For how many evaluations each sample of a batch has had a delta: 0 where it starts."""

    def __init__(self, every: int, batch: int) -> None:
        self.every, self.ages = every, torch.zeros(batch, dtype=torch.int64)

    def next(self, active: Tensor, at: Level) -> bool | None:
        """Whether the delta is computed at this evaluation, or else held; None where it is not
        active for any sample. A sample is to have what it would have alone.
        """
        fresh = (self.ages % self.every == 0)[active]
        self.ages = torch.where(active, self.ages + 1, 0)
        if not len(fresh):
            return None
        if bool(fresh.any()) and not bool(fresh.all()):
            raise ValueError(
                f"every is {self.every}, but it should be 1 for amounts that start at other "
                f"evaluations for one sample than for another: at {at} a delta would be computed "
                "for some and held for others"
            )
        return bool(fresh[0])
