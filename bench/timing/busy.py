"""How much slower are runs beside two busy processes, and how much of that is threads that wait?

Each figure is the median of some runs of the bundled model, CFG at batch 16 and REG at batch 8, ten
steps, in a process of its own: alone, and beside two processes that never rest. `OMP_WAIT_POLICY`,
which OpenMP reads when it is loaded, says how threads wait at the end of a parallel region: by
spinning for a while, the default, or asleep ("passive").

    python bench/timing/busy.py [--threads 2] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CHILD = """
import json, sys, time
import torch
import fastguide as fg
model = fg.load("fashion")
calls = {}
for name, guidance, batch in (("CFG", fg.CFG(3.0), 16), ("REG", fg.REG(fg.CFG(3.0)), 8)):
    sampler = fg.Sampler(model, guidance, steps=10)
    labels = torch.arange(batch) % 10
    calls[name] = lambda s=sampler, l=labels: s(l, range(len(l)))
seconds = {}
for name, call in calls.items():
    call()
    times = []
    for _ in range(int(sys.argv[1])):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    seconds[name] = sorted(times)[len(times) // 2]
print(json.dumps(seconds))
"""


def measured(policy: str | None, threads: int, rounds: int) -> dict[str, float]:
    """Median seconds of each run, in a process of its own."""
    settings = dict(os.environ, OMP_NUM_THREADS=str(threads))
    settings.pop("OMP_WAIT_POLICY", None)
    if policy is not None:
        settings["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, "-c", CHILD, str(rounds)]
    found = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(found.stdout)
    return result


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Beside so many processes that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Print a row for each policy and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"{given.threads} threads on {os.cpu_count()} cores, median of {given.rounds} runs")
    print("waiting   run  alone   beside two busy processes")
    for policy in (None, "passive"):
        alone = measured(policy, given.threads, given.rounds)
        with busy(2):
            beside = measured(policy, given.threads, given.rounds)
        for name, seconds in alone.items():
            ratio = beside[name] / seconds
            title = policy or "default"
            print(f"{title:9} {name}  {seconds:.3f} s {beside[name]:.3f} s, {ratio:.2f} times")


if __name__ == "__main__":
    main()
