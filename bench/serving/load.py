"""A server under load: open-loop Poisson arrivals of mixed requests, beside whole requests that run
in batches; and saturated, beside full static batches and `Sampler.submit`.

    make bench-serving ARGS='--requests 200 --share 0.7'

Both see the same arrivals, at a share of what whole-request packing can do; latency is from arrival
to result, so that what queues counts.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import fastguide as fg
from fastguide.sampling.inputs import bind_all
from fastguide.serving.packer import Packer
from fastguide.serving.requests import Request, amounts_of
from fastguide.serving.submit import Requests

GUIDANCES: dict[str, Any] = {
    "cfg": fg.CFG,
    "cfg + pag": lambda s: fg.CFG(s) + fg.PAG(0.3 * s),
    "interval": lambda s: fg.CFG(s, fg.interval(0.3, 3.0)),
}
SOLVERS = {"ddim": fg.ddim, "dpmpp_2m": fg.dpmpp_2m}
STEPS = (10, 20, 30, 40, 50)


@dataclass(frozen=True)
class Ask:
    """One request of the load."""

    cond: int
    seed: int
    guidance: str
    scale: float
    solver: str
    steps: int

    @property
    def settings(self) -> dict[str, Any]:
        """As `Sampler` takes them."""
        made = GUIDANCES[self.guidance](self.scale)
        return {"guidance": made, "solver": SOLVERS[self.solver], "steps": self.steps}


class Whole:
    """Whole requests of one kind (guidance but for its scale, solver, steps) in batches, the kind
    of the oldest first, on one thread.
    """

    def __init__(self, model: fg.Model, batch: int) -> None:
        self.model, self.batch, self.packer = model, batch, Packer(batch, 0.005)
        self.kinds: dict[tuple[str, str, int], Requests] = {}

    def submit(self, ask: Ask) -> Future[Tensor]:
        """Queue a request."""
        kind = (ask.guidance, ask.solver, ask.steps)
        if kind not in self.kinds:
            sampler = fg.Sampler(self.model, **ask.settings)
            self.kinds[kind] = Requests(sampler._planned, sampler._runner, self.batch, 0.0)
        requests = self.kinds[kind]
        planned = requests.planned
        amounts = amounts_of(planned.plan, ask.settings["guidance"], planned.setup.choose)
        conditions = bind_all(planned, ask.cond, None, 1)
        one = Request(ask.seed, conditions, *amounts, requests._run)
        one.form = (kind, one.form)
        return self.packer.put(one)


def drawn(source: random.Random, count: int) -> list[Ask]:
    """So many requests."""
    return [
        Ask(
            cond=source.randrange(10),
            seed=i,
            guidance=source.choice(list(GUIDANCES)),
            scale=source.choice([1.5, 2.0, 3.0, 5.0]),
            solver=source.choice(list(SOLVERS)),
            steps=source.choice(STEPS),
        )
        for i in range(count)
    ]


def saturated(submit: Callable[[Ask], Future[Tensor]], asks: list[Ask]) -> float:
    """Requests a second where all come at once."""
    began = time.perf_counter()
    wait([submit(ask) for ask in asks])
    return len(asks) / (time.perf_counter() - began)


def latencies(
    submit: Callable[[Ask], Future[Tensor]], asks: list[Ask], arrivals: list[float]
) -> list[float]:
    """Seconds of each request from its arrival on, in rising order."""
    began, done, futures = time.perf_counter(), {}, []
    for ask, at in zip(asks, arrivals, strict=True):
        time.sleep(max(0.0, began + at - time.perf_counter()))
        future = submit(ask)
        arrived = began + at
        future.add_done_callback(
            lambda _, seed=ask.seed, arrived=arrived: done.update(
                {seed: time.perf_counter() - arrived}
            )
        )
        futures.append(future)
    wait(futures)
    for future in futures:
        future.result()
    return sorted(done.values())


def arriving(source: random.Random, rate: float, count: int) -> list[float]:
    """When requests of a Poisson process arrive."""
    at, found = 0.0, []
    for _ in range(count):
        at += source.expovariate(rate)
        found.append(at)
    return found


def quantile(values: list[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))]


def under_load(model: fg.Model, options: argparse.Namespace) -> None:
    """Latencies at a share of what whole-request packing can do."""
    source = random.Random(0)
    asks = drawn(source, options.requests)
    whole = Whole(model, options.batch)
    saturated(whole.submit, asks[:30])  # plans, first calls
    capacity = saturated(whole.submit, asks)
    arrivals = arriving(source, options.share * capacity, len(asks))
    packed = latencies(whole.submit, asks, arrivals)
    whole.packer.close()
    with fg.Server(model, max_batch=options.batch) as server:

        def submit(ask: Ask) -> Future[Tensor]:
            return server.submit(ask.cond, ask.seed, **ask.settings)

        saturated(submit, asks[:30])
        own = saturated(submit, asks)
        shared = latencies(submit, asks, arrivals)
        counts = server.stats()
    print(f"{len(asks)} requests at {options.share:.0%} of {capacity:.2f} a second")
    print(f"saturated: whole {capacity:.2f}, server {own:.2f} a second: {own / capacity:.2f}")
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        one, other = quantile(packed, share), quantile(shared, share)
        print(f"{name}: whole {one:.2f} s, server {other:.2f} s: {other / one:.2f}")
    mean = counts.samples / counts.batches
    print(f"batches of the server: {mean:.1f} samples; passed over at most {counts.passed} times")


def against_static(model: fg.Model, options: argparse.Namespace) -> None:
    """One kind, saturated, beside full batches of a sampler."""
    steps, rounds = 10, 4
    sampler = fg.Sampler(model, fg.CFG(3.0), steps=steps)
    asks = [Ask(i % 10, i, "cfg", 3.0, "ddim", steps) for i in range(rounds * options.batch)]
    shares = []
    with fg.Server(sampler, max_batch=options.batch) as server:

        def submit(ask: Ask) -> Future[Tensor]:
            return server.submit(ask.cond, ask.seed)

        for _ in range(options.turns):
            began = time.perf_counter()
            for n in range(rounds):
                part = asks[n * options.batch :][: options.batch]
                sampler([ask.cond for ask in part], [ask.seed for ask in part])
            static = len(asks) / (time.perf_counter() - began)
            shares.append(saturated(submit, asks) / static)
    print(f"one kind, saturated: {statistics.median(shares):.3f} of full static batches")


def against_submit(model: fg.Model, options: argparse.Namespace) -> None:
    """Mixed guidance, saturated, beside `Sampler.submit` of a sampler that has all of it."""
    steps = 10
    both = fg.CFG(3.0) + fg.PAG(0.9) + fg.SEG(0.9)
    of: list[Any] = [fg.CFG, lambda s: fg.CFG(s) + fg.PAG(0.3 * s), lambda s: fg.SEG(0.3 * s)]
    mixed = [of[i % 3](1.5 + i % 4) for i in range(4 * options.batch)]
    sampler = fg.Sampler(model, both, steps=steps, max_batch=options.batch)
    shares = []
    with fg.Server(model, max_batch=options.batch) as server:
        for _ in range(options.turns):
            seconds = []
            for submit in (sampler.submit, server.submit):
                began = time.perf_counter()
                more = {} if submit == sampler.submit else {"steps": steps}
                futures = [submit(i % 10, i, one, **more) for i, one in enumerate(mixed)]
                for future in futures:
                    future.result()
                seconds.append(time.perf_counter() - began)
            shares.append(seconds[0] / seconds[1])
    sampler.close()
    print(f"mixed guidance, saturated: {statistics.median(shares):.2f} times Sampler.submit")


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", choices=["load", "static", "submit"])
    options = parser.parse_args()
    model = fg.load("fashion")
    parts = {"load": under_load, "static": against_static, "submit": against_submit}
    for name, part in parts.items():
        if options.only in (None, name):
            part(model, options)


if __name__ == "__main__":
    main()
