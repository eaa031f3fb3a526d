"""`make attack`: all inputs of every attack, each attack in a process of its own with a time limit.

Prints what became of them, keeps it in bench/results/attack.json and in the table of
docs/reliability.md. `run.py NAME --number 173` tries one input again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "bench" / "results" / "attack.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- attacks -->\n", "<!-- /attacks -->\n"

sys.path[:0] = [str(room) for room in sorted(HERE.parent.iterdir()) if room.is_dir()]
sys.path.append(str(ROOT / "bench" / "common"))

from attack import Attack, attacks  # noqa: E402
from machine import where_and_when  # noqa: E402


def child(attack: Attack, seed: int, numbers: range) -> None:
    """Run one attack here and print its outcomes as the last line."""
    print(json.dumps(dict(attack.run(seed, numbers))))


def supervise(attack: Attack, seed: int) -> dict[str, Any]:
    """Run all of `attack` in a process of its own: its outcomes, or why it broke."""
    command = [sys.executable, __file__, attack.name, "--seed", str(seed), "--here"]
    start = time.perf_counter()
    row: dict[str, Any] = {"name": attack.name, "promise": attack.promise, "count": attack.count}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=attack.seconds,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return {**row, "broken": f"it hangs: not done after {attack.seconds:g} s"}
    row["seconds"] = round(time.perf_counter() - start, 1)
    if done.returncode != 0:
        told = done.stderr.strip() or "nothing on stderr"
        _, broken, why = told.rpartition("Broken: ")
        why = why if broken else told.splitlines()[-1]
        return {**row, "broken": f"exit code {done.returncode}: {why}"}
    return {**row, "outcomes": json.loads(done.stdout.splitlines()[-1])}


def describe(row: dict[str, Any]) -> str:
    """What became of the inputs, in words."""
    if "broken" in row:
        return f"BROKEN: {row['broken']}"
    outcomes = sorted(row["outcomes"].items(), key=lambda pair: -pair[1])
    return ", ".join(f"{count:,} {name}" for name, count in outcomes)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as docs/reliability.md shows them."""
    lines = ["| attack | what is promised | inputs | what became of them |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['name']} | {row['promise']} | {row['count']:,} | {describe(row)} |")
    return "\n".join(lines) + "\n"


def keep(rows: list[dict[str, Any]], seed: int) -> None:
    """Write the results and the page's table; attacks that did not run keep their last row."""
    known = json.loads(RESULTS.read_text())["attacks"] if RESULTS.exists() else []
    merged = {row["name"]: row for row in [*known, *rows]}
    kept = [merged[attack.name] for attack in attacks() if attack.name in merged]
    found = {**where_and_when(), "seed": seed, "attacks": kept}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + table(kept) + END + after)


def main() -> None:
    """Run the attacks that the command line names, or all."""
    known = {attack.name: attack for attack in attacks()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="try this input again, here")
    parser.add_argument("--jobs", type=int, default=2, help="attacks at a time")
    parser.add_argument("--here", action="store_true", help="in this process, without a limit")
    given = parser.parse_args()
    for name in given.names:
        if name not in known:
            parser.error(f"NAME is {name!r}, but it should be one of {', '.join(known)}")
    chosen = [known[name] for name in given.names] or list(known.values())
    if given.here or given.number is not None:
        for attack in chosen:
            numbers = range(attack.count)
            if given.number is not None:
                first = given.number - given.number % attack.block
                numbers = range(first, first + attack.block)
            child(attack, given.seed, numbers)
        return
    rows = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for row in pool.map(lambda attack: supervise(attack, given.seed), chosen):
            seconds = f", {row['seconds']:g} s" if "seconds" in row else ""
            print(f"{row['name']} ({row['count']:,}{seconds}): {describe(row)}", flush=True)
            rows.append(row)
            keep([row for row in rows if "broken" not in row], given.seed)
    if any("broken" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
