"""What an attack is: a function that makes hostile inputs from a seed and says what became of each.

A module `attack_*.py` beside this one defines `ATTACKS`, a tuple of them. `make test` runs the
bounded part of each, `make attack` all of it (`run.py`).
"""

from __future__ import annotations

import importlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


class Broken(AssertionError):
    """A promise that an input broke: the message says which, and how to make that input again."""


@dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        name: of the attack, as `make attack ARGS=name` takes it.
        promise: what must hold for every input, as docs/reliability.md states it.
        run: `(seed, numbers) -> outcomes`: tries the inputs of those numbers, each made from (seed,
            number) alone (`draw`), counts what became of them by a short name, and raises Broken at
            the first that does not keep the promise.
        count: inputs that `make attack` tries.
        bounded: of those, how many `make test` does: a few seconds; 0 where it cannot.
        seconds: that all of it may take at most; then it hangs.
        block: how many inputs are made together, from (seed, number of the first).
    """

    name: str
    promise: str
    run: Callable[[int, range], Counter[str]]
    count: int
    bounded: int
    seconds: float = 900.0
    block: int = 1


def draw(seed: int, numbers: range) -> Iterator[tuple[int, random.Random]]:
    """Each number, with a generator of its own: input 173 is the same alone as after 172 others."""
    for number in numbers:
        yield number, random.Random(f"{seed}/{number}")


def attacks() -> list[Attack]:
    """Those of all modules beside this one."""
    modules = [importlib.import_module(path.stem) for path in sorted(HERE.glob("attack_*.py"))]
    return [attack for module in modules for attack in module.ATTACKS]
