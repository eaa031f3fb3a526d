"""How a run differs from another of the same pipeline: seeds, and what its updates are told."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

SEEDS = 2**62  # seeds lie below, so that one can be counted up


@dataclass(frozen=True)
class Draws:
    """What a run draws by, and what its updates are told.

    Args:
        seeds: of layers that draw (TPG, TSG) and of what guidance draws (ICG, SAG): one for each
            sample; or one, from which sample i has the i-th.
        eta, use_clipped: of DDIM and TCD.
    """

    seeds: tuple[int, ...] = (0,)
    eta: float = 0.0
    use_clipped: bool = False

    def of_batch(self, batch: int) -> list[int]:
        """One seed for each sample.

        Raises:
            ValueError: the call has another number of generators.
        """
        if len(self.seeds) == batch:
            return list(self.seeds)
        if len(self.seeds) > 1:
            raise ValueError(
                f"generator holds {len(self.seeds)} generators, but there are {batch} samples"
            )
        return [(self.seeds[0] + i) % SEEDS for i in range(batch)]


def draws_of(given: Mapping[str, Any]) -> Draws:
    """Those of a call's arguments; nothing is drawn from its generators."""
    generator = given.get("generator")
    each: list[Any] = (
        list(generator) if isinstance(generator, (list, tuple)) and generator else [generator]
    )
    return Draws(
        tuple(_seed(one) for one in each),
        float(given.get("eta") or 0.0),
        bool(given.get("use_clipped_model_output")),
    )


def _seed(generator: torch.Generator | None) -> int:
    """A number that the generator's present state says."""
    state = torch.get_rng_state() if generator is None else generator.get_state()
    digest = hashlib.blake2b(state.numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % SEEDS
