"""Each benchmark is a ratio to its twin, measured in turns in one run, and held to a baseline.

Machines differ and drift; ratios hold. `make bench` fails on a row that is more than 10 % worse
than bench/baseline.json says, or past the limit stated beside it; `make baseline` renews that file.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "common"))
from machine import where_and_when

from fastguide.common.files import write_atomic
from fastguide.common.heap import keep_freed_memory

BASELINE = Path(__file__).parents[1] / "baseline.json"
TOLERANCE = 1.10


def pytest_addoption(parser):
    parser.addoption("--renew-baseline", action="store_true", help="write bench/baseline.json anew")


def pytest_configure(config):
    keep_freed_memory()
    config.ratios = {}


@pytest.fixture
def ratio(benchmark, request):
    """`ratio(name, ours, twin, limit)`: time both in turns and judge the median of ours over the
    mean of the twin before and the twin after it, so that a drift of the machine cancels. Seconds
    are those of the mark `benchmark(timer=...)`.
    """
    mark = request.node.get_closest_marker("benchmark")
    timer = time.perf_counter if mark is None else mark.kwargs.get("timer", time.perf_counter)

    def measure(
        name: str,
        ours: Callable[[], object],
        twin: Callable[[], object],
        limit: float | None = None,
        rounds: int = 7,
    ) -> float:
        twins = []

        def time_twin():
            start = timer()
            twin()
            twins.append(timer() - start)

        benchmark.pedantic(ours, setup=time_twin, rounds=rounds, warmup_rounds=1)
        time_twin()
        around = [(a + b) / 2 for a, b in pairwise(twins[-rounds - 1 :])]
        pairs = zip(benchmark.stats.stats.data, around, strict=True)
        value = statistics.median(mine / other for mine, other in pairs)
        benchmark.extra_info.update(ratio=value, twin_seconds=statistics.median(around))
        request.config.ratios[name] = value
        assert limit is None or value <= limit, f"{name}: ratio {value:.3f} is above {limit}"
        if not request.config.getoption("--renew-baseline"):
            known = json.loads(BASELINE.read_text())["ratios"] if BASELINE.exists() else {}
            assert name in known, f"{name} has no baseline; run `make baseline` and commit the file"
            assert value <= TOLERANCE * known[name], (
                f"{name}: ratio {value:.3f} is more than 10 % worse than the baseline, "
                f"{known[name]:.3f}"
            )
        return value

    return measure


def pytest_terminal_summary(terminalreporter, config):
    if config.ratios:
        terminalreporter.section("time relative to the twin")
        for name, value in config.ratios.items():
            terminalreporter.line(f"{value:8.3f}  {name}")


def pytest_sessionfinish(session, exitstatus):
    config = session.config
    if config.getoption("--renew-baseline") and config.ratios:  # a limit that failed stays red
        content = {
            **where_and_when(),
            "tolerance": TOLERANCE,
            "ratios": {k: round(v, 4) for k, v in config.ratios.items()},
        }
        write_atomic(BASELINE, (json.dumps(content, indent=2) + "\n").encode())
