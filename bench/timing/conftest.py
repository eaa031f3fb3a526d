"""Rows of `make bench`: each beside its twin in one run, and beside itself at another revision.

`ratio(name, ours, twin)` times `ours` of the tree, `ours` of the base, which another process runs
(turns.py), and `twin`, in turns. A row fails where it is slower than the base (verdict.py) or above
its limit beside its twin (limits.py).

    pytest bench/timing --base REVISION|auto|none [-k ROWS] [--keep]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "common"))
from base import built, git, resolve
from limits import limit_of
from machine import ROOT, short_name, where_and_when
from turns import Call, Other, Unusable, begin, build_of, clock, seconds_of, timer_of
from verdict import SLOWER, Ratio, ratio_of

from fastguide.common.files import write_atomic

BASELINE = ROOT / "bench/baseline.json"
SECONDS, LEAST = 3.0, 5  # of a row, as far as so many rounds allow
SHORT = 0.05  # seconds of a call, below which it matters what the one before left in the caches


@dataclass
class Row:
    """What was found: beside the twin, beside the base, or why not."""

    twin: Ratio
    limit: float | None
    base: Ratio | None = None
    missing: str = ""


class Bench:
    """The rows of a session, and the process of the base."""

    def __init__(self, package: Path | None, name: str) -> None:
        self.package, self.name = package, name
        self.other: Other | None = None
        self.rows: dict[str, Row] = {}

    def begin(self, files: list[Path]) -> None:
        """Start the process of the base."""
        if self.package is None:
            return
        tree = self.package.parent
        own = [tree / "bench/timing", tree / "bench/common", tree / "bench"]
        own = [folder for folder in own if folder.is_dir()]
        self.other = Other(self.package, files, own, tree / "log.txt")
        ours, theirs = build_of(), self.other.about["build"]
        for key in ("compiler", "openmp", "levels"):
            if key in ours and key in theirs and ours[key] != theirs[key]:
                raise pytest.UsageError(
                    f"the tree was built with {key} {ours[key]!r}, but the base with "
                    f"{theirs[key]!r}; build both alike (touch setup.py, make bench)"
                )

    def measure(
        self,
        benchmark: Any,
        timer: Callable[[], float],
        name: str,
        ours: Call,
        twin: Call,
        most: int,
    ) -> Row:
        """Beside the twin, and beside the base where it has the row."""
        other, missing = self.other, ""
        for call in (twin, ours):  # compiles, allocates
            call()
        if other is not None:
            try:
                other.wait(name)
            except Unusable as reason:
                missing, other = str(reason), None
        try:
            times = take_turns(benchmark, timer, ours, twin, other, most)
        finally:
            if other is not None:
                other.end()
        benchmark.extra_info.update(twin_seconds=statistics.median(times["twin"]))
        beside = ratio_of(times["ours"], times["base"]) if other is not None else None
        return Row(ratio_of(times["ours"], times["twin"]), None, beside, missing)


def take_turns(
    benchmark: Any,
    timer: Callable[[], float],
    ours: Call,
    twin: Call,
    other: Other | None,
    most: int,
) -> dict[str, list[float]]:
    """Seconds of "base", "twin" and "ours", in this order, and of the first two once more at the
    end. Short calls come twice, and the second is timed, the base's after its own twin as the
    tree's; a long one is not changed by what was before it.
    """
    times: dict[str, list[float]] = {"ours": [], "twin": [], "base": []}
    warm_twin, warm = (seconds_of(call, timer) < SHORT for call in (twin, ours))

    def others() -> None:
        if other is not None:
            times["base"].append(other.seconds(warm))
        times["twin"].append(seconds_of(twin, timer, warm_twin))
        if warm:
            ours()

    def turn() -> None:
        others()
        times["ours"].append(seconds_of(ours, timer))

    start = time.perf_counter()
    turn()
    once = time.perf_counter() - start
    for found in times.values():
        found.clear()
    rounds = max(LEAST, min(most, int(SECONDS / once)))
    benchmark.pedantic(ours, setup=others, rounds=rounds)
    times["ours"] += benchmark.stats.stats.data
    others()
    if other is not None and ratio_of(times["ours"], times["base"]).value > SLOWER:
        for found in (times["twin"], times["base"]):  # be sure of it: three times as many
            found.pop()
        for _ in range(2 * rounds):
            turn()
        others()
    return times


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--base", default="none", help="a revision, auto, or none")
    parser.addoption("--keep", action="store_true", help="write the rows to bench/baseline.json")


def pytest_configure(config: pytest.Config) -> None:
    begin()
    config.option.benchmark_timer = f"time.{clock().__name__}"
    base, package = config.getoption("--base"), None
    if base != "none":
        try:
            commit = resolve(ROOT, base)
            print(f"the base is {git(ROOT, 'log', '-1', '--format=%h %s', commit)}", flush=True)
            package, base = built(ROOT, commit), commit[:12]
        except (ValueError, RuntimeError) as error:
            raise pytest.UsageError(str(error)) from error
    config.stash[BENCH] = Bench(package, base)


BENCH = pytest.StashKey[Bench]()


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.items and not session.config.option.collectonly:
        files = list(dict.fromkeys(item.path for item in session.items))
        session.config.stash[BENCH].begin(files)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """The base prepares a row while the tree does."""
    other = item.config.stash[BENCH].other
    torch.manual_seed(0)
    if other is not None and "ratio" in item.fixturenames:
        other.prepare(f"{item.path.name}::{item.name}")
    yield
    if other is not None:
        other.finish()


@pytest.fixture
def ratio(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., float]:
    """`ratio(name, ours, twin)`: see the file's first lines; gives ours over the twin's.

    Seconds are those of the mark `benchmark(timer=...)`. `limit` is one that is computed, beside
    that of limits.py; `rounds` are the most.
    """
    bench, timer = request.config.stash[BENCH], timer_of(request.node)

    def measure(
        name: str, ours: Call, twin: Call, limit: float | None = None, rounds: int = 7
    ) -> float:
        row = bench.measure(benchmark, timer, name, ours, twin, rounds)
        given = [one for one in (limit, limit_of(name)) if one is not None]
        row.limit = min(given, default=None)
        bench.rows[name] = row
        if row.base is not None:
            assert not row.base.is_slower, (
                f"{name}: {row.base.value:.3f} of the time at {bench.name}, "
                f"+- {row.base.spread:.3f} in {row.base.rounds} rounds"
            )
        assert row.limit is None or not row.twin.exceeds(row.limit), (
            f"{name}: {row.twin.value:.3f} +- {row.twin.spread:.3f} of the twin's time is above "
            f"{row.limit:.3f}"
        )
        return row.twin.value

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    bench = config.stash[BENCH]
    if not bench.rows:
        return
    terminalreporter.section(f"time relative to {bench.name} and to the twin, +- spread")
    for name, row in bench.rows.items():
        base = f"{row.base.value:7.3f} +- {row.base.spread:.3f}" if row.base else f"{'':16}"
        limit = f"(<= {row.limit:.2f})" if row.limit else ""
        twin = f"{row.twin.value:7.3f} +- {row.twin.spread:.3f} {limit:9}"
        note = "  faster" if row.base and row.base.is_faster else ""
        note += f"  not at the base: {row.missing}" if row.missing else ""
        terminalreporter.line(f"{base}  {twin}  {name}{note}")
    missing = sum(bool(row.missing) for row in bench.rows.values())
    if missing:
        terminalreporter.line(
            f"{missing} of {len(bench.rows)} rows were not compared with the base"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    bench = session.config.stash[BENCH]
    if bench.other is not None:
        bench.other.close()
    if not session.config.getoption("--keep") or not bench.rows:
        return
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    before = known.get(short_name(), {}).get("ratios", {})
    ratios = {name: round(row.twin.value, 4) for name, row in bench.rows.items()}
    known[short_name()] = {**where_and_when(), "ratios": {**before, **ratios}}
    write_atomic(BASELINE, (json.dumps(known, indent=2) + "\n").encode())
