"""Requests of four threads to a sampler whose network raises, returns NaN or stops for some, while
others are cancelled, run out of time, or come after it was closed: every future is resolved, with
its own sample or with its own error.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future
from typing import Any

import exact
import torch
from attack import Attack, Broken, draw

import fastguide as fg

GROUP = 25  # requests of one sampler
STEPS = 3
FINE, RAISES, NAN, SLOW, ENDS = range(5)
KINDS = (FINE, FINE, FINE, FINE, FINE, FINE, RAISES, NAN, SLOW)
MODEL = exact.two_classes(exact.PROCESSES["edm"])
SLEEP = 0.05


class Ended(SystemExit):
    """What ends the thread that packs."""


def net(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """The exact model; `cond` `[rows, 2]` holds the label and what is to happen."""
    kinds = set(cond[:, 1].tolist())
    if ENDS in kinds:
        raise Ended
    if RAISES in kinds:
        raise RuntimeError("of the network")
    if SLOW in kinds:
        time.sleep(SLEEP)
    out = MODEL.net(x, t, cond[:, 0].long())
    return torch.where((cond[:, 1] == NAN).view(-1, 1, 1, 1), torch.nan, out)


def model() -> fg.Model:
    """The network as a model of conditions that are tensors."""
    return fg.Model(
        net, MODEL.process, MODEL.prediction, MODEL.shape, null=torch.tensor([2.0, float(FINE)])
    )


def condition(label: int, kind: int) -> torch.Tensor:
    """Of one sample."""
    return torch.tensor([[float(label), float(kind)]])


class Asked:
    """One request, and what may become of it."""

    def __init__(self, source: random.Random, ends: bool) -> None:
        self.kind = ENDS if ends else source.choice(KINDS)
        self.label, self.seed = source.randrange(2), source.randrange(2**63)
        self.scale = source.choice((1.0, 0.5, 2.0, 4.0))
        self.narrow = source.random() < 0.3
        self.timeout = source.choice((None, None, None, 30.0, 0.0, 0.02))
        self.cancels = source.random() < 0.15
        self.wait = source.uniform(0.0, 0.01)
        self.future: Future[torch.Tensor] | None = None
        self.refused = False

    @property
    def guidance(self) -> fg.Guidance:
        """Its own."""
        return fg.CFG(self.scale, fg.interval(0.1, 3.0) if self.narrow else None)

    def ask(self, sampler: fg.Sampler) -> None:
        """Submit it, and perhaps cancel it."""
        time.sleep(self.wait)
        try:
            self.future = sampler.submit(
                condition(self.label, self.kind), self.seed, self.guidance, None, self.timeout
            )
        except RuntimeError as error:
            if "takes no more requests" not in str(error):
                raise
            self.refused = True
            return
        if self.cancels:
            self.future.cancel()

    def outcome(self, closing: bool, ending: bool) -> str:
        """What became of it; Broken where that is not its own."""
        if self.refused:
            if not (closing or ending):
                raise Broken("it was refused, but nothing had closed the sampler")
            return "refused, as the sampler was closed"
        assert self.future is not None
        try:
            sample = self.future.result(60)
        except CancelledError:
            if not self.cancels:
                raise Broken("it was cancelled by nobody") from None
            return "cancelled"
        except fg.NonFiniteError:
            return self._if(self.kind == NAN, "an error of its own: not finite")
        except TimeoutError as error:
            told = "not done within timeout" in str(error)
            return self._if(told and self.timeout in (0.0, 0.02), "out of time")
        except RuntimeError as error:
            if "ended its thread" in str(error):
                return self._if(ending, "an error, as another ended the thread")
            return self._if(self.kind == RAISES, "an error of its own: the network raises")
        want = fg.sample(
            model(),
            condition(self.label, FINE),
            self.guidance,
            steps=STEPS,
            seeds=[self.seed],
        )[0]
        apart = ((sample - want).abs().max() / want.abs().max()).item()
        return self._if(self.kind in (FINE, SLOW) and apart < 1e-5, "its own sample")

    def _if(self, holds: bool, outcome: str) -> str:
        if not holds:
            raise Broken(f"{outcome}, of {vars(self)}")
        return outcome


def attack(seed: int, numbers: range) -> Counter[str]:
    """Each number is one request; those of a group ask one sampler."""
    outcomes: Counter[str] = Counter()
    made = list(draw(seed, numbers))
    for first in range(0, len(made), GROUP):
        group = made[first : first + GROUP]
        source = group[0][1]
        ending, closing = source.random() < 0.2, source.random() < 0.3
        asked = [
            Asked(own, ending and place == len(group) // 2) for place, (_, own) in enumerate(group)
        ]
        options: dict[str, Any] = {"max_batch": source.randint(1, 8), "max_wait": 0.005}
        sampler = fg.Sampler(model(), fg.CFG(2.0), steps=STEPS, **options)
        errors: list[BaseException] = []

        def ask(part: list[Asked], sampler: Any = sampler, errors: Any = errors) -> None:
            try:
                for one in part:
                    one.ask(sampler)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, args=(asked[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        if closing:
            time.sleep(source.uniform(0.05, 0.2))
            sampler.close()
        for thread in threads:
            thread.join()
        if errors:
            raise Broken(f"request {group[0][0]} and after: {errors[0]!r}") from errors[0]
        for (number, _), one in zip(group, asked, strict=True):
            try:
                outcomes[one.outcome(closing, ending)] += 1
            except Broken as error:
                raise Broken(f"request {number}: {error}") from error
            except Exception as error:
                raise Broken(f"request {number}: {error!r}") from error
        sampler.close(30.0)
    return outcomes


ATTACKS = (
    Attack(
        "requests",
        "Every request is resolved: with the sample that it would be alone, to 1e-5, or with its "
        "own error",
        attack,
        count=300,
        bounded=25,
    ),
)
