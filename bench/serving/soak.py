"""Thousands of mixed requests against one server, some cancelled, some failing, some watched: every
result is held to the request alone, and what was passed over, lost or kept is counted.

    make soak-serving ARGS='--requests 2000 --invariant'
"""

from __future__ import annotations

import argparse
import gc
import random
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastguide as fg

TOLERANCE = 1e-5  # of the largest value of a sample
POISON = 1e4  # a negative weight so large that x tells of it
GUIDANCES: dict[str, Any] = {
    "none": lambda s: None,
    "cfg": fg.CFG,
    "cfg and pag": lambda s: fg.CFG(s) + fg.PAG(0.3 * s),
    "interval": lambda s: fg.CFG(s, fg.interval(0.2, 5.0)),
    "held": lambda s: fg.CFG(s, every=2),
    "apg": lambda s: fg.APG(fg.CFG(s), radius=2.0, momentum=-0.5),
    "rescale": lambda s: fg.CFG(s).rescale(0.7),
    "adaptive": lambda s: fg.Adaptive(fg.CFG(s), similarity=0.95),
}
SOLVERS = {
    "ddim": fg.ddim,
    "ancestral": fg.ddim(eta=1.0),
    "dpmpp_2m": fg.dpmpp_2m,
    "heun": fg.heun,
}


def poisoned(stage: Any) -> Any:
    """The first stage of a network, which raises where a sample of its batch is too large."""

    def run(state: Any, cond: Any, routing: Any) -> Any:
        if bool((state[0].abs().flatten(1).amax(1) > POISON).any()):
            raise ArithmeticError("poisoned")
        return stage.run(state, cond, routing)

    return stage._replace(run=run)


class Poisoned(torch.nn.Module):
    """The network, which raises for some samples."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.inner = net
        first, *others = net.stages
        self.stages, self.middle = [poisoned(first), *others], net.middle

    @property
    def embed_times(self) -> Any:
        """The network's own."""
        return self.inner.embed_times

    def prepare(self, cond: Any) -> Any:
        """The network's own."""
        return self.inner.prepare(cond) if hasattr(self.inner, "prepare") else cond


def ask(server: fg.Server, source: random.Random, i: int, steps: tuple[int, int]) -> Any:
    """One request: its settings, whether it fails, its future, and how often it was shown."""
    settings: dict[str, Any] = {
        "guidance": GUIDANCES[source.choice(list(GUIDANCES))](source.choice([1.5, 2.5, 4.0])),
        "solver": SOLVERS[source.choice(list(SOLVERS))],
        "steps": source.randint(*steps),
    }
    fails, shown = source.random() < 0.01, []
    watched: dict[str, Any] = {}
    if fails:
        far = torch.full(server.model.shape, 100 * POISON)
        watched = {"init": far, "strength": 0.8}
    elif source.random() < 0.1:
        watched = {"callback": lambda p: shown.append(p.evaluation), "previews": 2}
    future = server.submit(i % 10, i, **settings, **watched)
    if source.random() < 0.1:
        threading.Timer(2.0 * source.random(), future.cancel).start()
    return settings, fails, future, shown


def resident() -> float:
    """Memory of this process now, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def differences(model: fg.Model, server: fg.Server, asked: list[Any], invariant: bool) -> float:
    """The largest, of the size of its sample: from a call alone, or from the server's own answer to
    the request alone.
    """
    worst = 0.0
    for i, (settings, fails, future, _) in enumerate(asked):
        if future.cancelled():
            continue
        if fails:
            assert isinstance(future.exception(0), ArithmeticError), future
            continue
        found: Tensor = future.result(0)
        if invariant:
            want = server.submit(i % 10, i, **settings).result()
        else:
            want = fg.sample(model, [i % 10], seeds=[i], **settings)[0]
        worst = max(worst, float((found - want).abs().max() / want.abs().max()))
    return worst


def main() -> None:
    """Run and print; an AssertionError says what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--steps", type=int, nargs=2, default=(2, 8))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--invariant", action="store_true")
    options = parser.parse_args()
    model, source = fg.load("fashion"), random.Random(0)
    served = replace(model, net=Poisoned(model.net))
    server = fg.Server(served, max_batch=options.batch, batch_invariant=options.invariant)
    asked: list[Any] = []
    memory: list[float] = []
    began = time.perf_counter()
    for i in range(options.requests):
        asked.append(ask(server, source, i, tuple(options.steps)))
        if i % (options.requests // 20) == 0:
            pending: list[Future[Tensor]] = [one[2] for one in asked[:-100]]
            wait(pending)
            gc.collect()
            memory.append(resident())
    wait([one[2] for one in asked])
    seconds, counts = time.perf_counter() - began, server.stats()
    worst = differences(model, server, asked, options.invariant)
    server.close()
    bound = server.patience + server.max_live - 1
    print(f"{options.requests} requests in {seconds:.0f} s: {counts}")
    print(f"previews {sum(len(one[3]) for one in asked)}; worst difference {worst:.1e}")
    print(f"passed over at most {counts.passed} times in a row; the bound is {bound}")
    print(f"memory, MiB: {', '.join(f'{m:.0f}' for m in memory)}")
    assert counts.finished + counts.failed + counts.cancelled == counts.requests
    assert counts.passed <= bound
    assert worst <= (0.0 if options.invariant else TOLERANCE)


if __name__ == "__main__":
    main()
