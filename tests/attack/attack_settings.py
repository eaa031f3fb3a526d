"""Random configurations under whatever a process may have set: the samples, or the error, are the
same, to the last bit.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from attack import Attack, Broken
from attack_configurations import BLOCK, blocks
from configurations import Configuration, configurations
from hypothesis import strategies as st
from process_settings import SETTINGS

import fastguide as fg


def run(made: Configuration, parts: dict[str, Any]) -> torch.Tensor | str:
    """Its samples, or its error."""
    try:
        return made.sampler(**parts)(**made.call())
    except (ValueError, TypeError, fg.NonFiniteError) as error:
        return f"{type(error).__name__}: {error}"


def compare(given: tuple[Configuration, list[str]]) -> str:
    """What became of a configuration under settings."""
    made, names = given
    try:  # what the caller has on the CPU
        parts = {"model": made.model, "guidance": made.guidance()}
    except ValueError:
        return "of a guidance that is refused anyway"
    want = run(made, parts)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(SETTINGS[name]())
        got = run(made, parts)
    if isinstance(want, str) or isinstance(got, str):
        if want != got:
            raise Broken(f"{made} under {names}: {got}, but otherwise {want}")
        return "the same error"
    if got.device != want.device or got.dtype != want.dtype or not torch.equal(got, want):
        raise Broken(f"{made} under {names}: other samples")
    return "the same bits"


def attack(seed: int, numbers: range) -> Counter[str]:
    """See the module."""
    names = st.lists(st.sampled_from(list(SETTINGS)), min_size=1, max_size=3, unique=True)
    return blocks(seed, numbers, st.tuples(configurations(), names), compare)


ATTACKS = (
    Attack(
        "settings",
        "Default dtype and device, grad and inference mode, deterministic algorithms and thread "
        "counts of the process change no bit",
        attack,
        count=300,
        bounded=5,
        block=BLOCK,
    ),
)
