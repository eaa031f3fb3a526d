"""Random configurations of runs: each is refused by a clear error, or its samples are finite, or
said not to be; they are the same again, and a sample alone is what it is in the batch.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attack import Attack, Broken
from configurations import Configuration, configurations
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from wrong import CASES, SPOILED, Wrong

import fastguide as fg

# what else an error may call an argument: where its value was found to lie
ALSO = {
    "model": ("name", "holds no"),
    "within": ("schedule",),
    "solver": ("has no option",),
    "spacing": ("has no option",),
}
PACKAGE = str(Path(fg.__file__).parent)
BLOCK = 50  # inputs that Hypothesis makes from one seed
CLOSE = 1e-5


def clear(error: Exception) -> str:
    """ "" where an error is one of ours that says what is wrong, else why it is not."""
    if type(error) not in (ValueError, TypeError, fg.CheckpointError):
        return f"it is a {type(error).__name__}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    if not last.filename.startswith(PACKAGE):
        return f"it comes from {last.filename}:{last.lineno}"
    if "raise" not in (last.line or "") and "Error(" not in (last.line or ""):
        return f"nobody raises it: {last.filename}:{last.lineno} {last.line}"
    return ""


def blocks(seed: int, numbers: range, strategy: Any, judge: Callable[[Any], str]) -> Counter[str]:
    """Judge inputs of a strategy, those of a block from (seed, first number of the block)."""
    outcomes: Counter[str] = Counter()
    for first in range(numbers.start, numbers.stop, BLOCK):
        count = min(BLOCK, numbers.stop - first)
        made = 0

        @seeded(f"{seed}/{first}")
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(strategy)
        def one(given_input: Any) -> None:
            nonlocal made
            outcomes[judge(given_input)] += 1
            made += 1

        try:
            one()
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", ()))
            raise Broken(f"block {first}: {type(error).__name__}: {error} {notes}") from error
        outcomes["the same as another"] += count - made
    return +outcomes


def run_one(made: Configuration) -> str:
    """What became of a configuration."""
    try:
        sampler = made.sampler()
        call = made.call()
        samples = sampler(**call)
    except fg.NonFiniteError:
        return "not finite, and said so"
    except Exception as error:
        why = clear(error)
        if why:
            raise Broken(f"{made}: {type(error).__name__}: {error}: {why}") from error
        return "refused"
    if not samples.isfinite().all():
        raise Broken(f"{made}: not finite in silence")
    if not torch.equal(sampler(**call), samples):
        raise Broken(f"{made}: another result when it is called again")
    only = made.seeds[0] % len(made.seeds)
    alone = made.sampler(only)(**made.call(only))[0]
    size = samples.abs().max().clamp(min=1e-3)
    apart = ((alone - samples[only]).abs().max() / size).item()
    if apart <= CLOSE:
        return "alone as in its batch, to 1e-5"
    bound = amplified(made, sampler, call, samples)
    if apart > bound:
        raise Broken(f"{made}: sample {only} alone differs by {apart:.2g}, bound {bound:.2g}")
    return "alone as in its batch, but for rounding that the run amplifies"


def refuse_one(given: tuple[Configuration, Any]) -> str:
    """What became of a wrong argument: of a constructor, or of a configuration that would run."""
    made, case = given
    if isinstance(case, Wrong):
        where, name, make = repr(case), case.name, case.make
    else:
        kind, name, value = case
        where = f"{made}: {kind} {name}={value!r:.60}"
        make = partial(spoiled, made, **{kind: {name: value}})
    try:
        make()
    except Exception as error:
        why = clear(error)
        if not why and not any(word in str(error) for word in (name, *ALSO.get(name, ()))):
            if not isinstance(case, Wrong) and refused(made):
                return "of a run that is refused anyway"
            why = f"it does not name {name}"
        if why:
            raise Broken(f"{where}: {type(error).__name__}: {error}: {why}") from error
        return f"a {type(error).__name__} that names it"
    raise Broken(f"{where}: taken without an error")


def refused(made: Configuration) -> bool:
    """Whether the configuration is refused as it is."""
    try:
        made.sampler()(**made.call())
    except (ValueError, TypeError):
        return True
    except fg.NonFiniteError:
        pass
    return False


def spoiled(
    made: Configuration,
    sampler: dict[str, Any] | None = None,
    call: dict[str, Any] | None = None,
) -> torch.Tensor:
    """A run of the configuration with other arguments."""
    return made.sampler(**(sampler or {}))(**{**made.call(), **(call or {})})


def amplified(
    made: Configuration, sampler: fg.Sampler, call: dict[str, Any], samples: torch.Tensor
) -> float:
    """What rounding may become: 20 times what a change of the start noise by 8 roundings does."""
    rounding = torch.finfo(sampler.dtype if made.layers else torch.float32).eps
    noise = fg.noise(call["seeds"], sampler.shape)
    again = sampler(**call, noise=noise)
    moved = sampler(**call, noise=noise * (1 + 8 * rounding))
    size = samples.abs().max().clamp(min=1e-3)
    return max(20 * ((moved - again).abs().max() / size).item(), 16 * rounding)


def attack(seed: int, numbers: range) -> Counter[str]:
    """See the module."""
    return blocks(seed, numbers, configurations(), run_one)


def attack_arguments(seed: int, numbers: range) -> Counter[str]:
    """Wrong arguments of runs, and of everything that makes them."""
    cases = st.one_of(st.sampled_from(CASES), st.sampled_from(SPOILED))
    return blocks(seed, numbers, st.tuples(configurations(), cases), refuse_one)


ATTACKS = (
    Attack(
        "arguments",
        "A wrong argument is a ValueError or a TypeError of ours that names it",
        attack_arguments,
        count=2500,
        bounded=50,
        block=BLOCK,
    ),
    Attack(
        "configurations",
        "A run is refused by an error that names the argument, or its samples are finite (or said "
        "not to be), the same again, and the same alone",
        attack,
        count=3000,
        bounded=50,
        seconds=1500.0,
        block=BLOCK,
    ),
)
