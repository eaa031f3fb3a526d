"""Results that survive being killed: rows of a benchmark in a JSON file that is always whole."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))  # `memory` is there too
from machine import ROOT as ROOT
from machine import version_of as version_of
from machine import where_and_when as where_and_when


def write_json(path: Path, content: Any) -> None:
    """Replace the file, so that a reader sees the old one or the new one. It is
    `fastguide.checkpoint.models.write_atomic` for a time when fastguide may not be built yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def options(doc: str | None, tiny: str) -> argparse.ArgumentParser:
    """What every benchmark of a GPU takes; `tiny` says what --tiny does."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="a file for what is measured")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help=tiny)
    return parser


class Deadline:
    """`seconds` from now on; `clock` tells the time."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.end = clock, clock() + seconds

    def left(self) -> float:
        """Seconds, never negative."""
        return max(0.0, self.end - self.clock())


class Skipped(Exception):
    """A row cannot run here, for the reason that this says."""


def is_fatal(error: Exception) -> bool:
    """Whether nothing runs on the device in this process from now on."""
    return "CUDA error" in str(error)


@dataclass(frozen=True)
class Job:
    """One row of a benchmark.

    Args:
        name: of the row, as it is printed.
        run: gives its figures.
        seconds: about how long it takes on the GPU.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    seconds: float = 1.0


@dataclass
class Report:
    """Rows in a file that is rewritten after each of them.

    Args:
        path: of the file, or None.
        content: what stands before the rows: settings, ceilings, targets.
    """

    path: Path | None
    content: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def save(self) -> None:
        """Write what there is."""
        if self.path is not None:
            write_json(self.path, {**self.content, "rows": self.rows})

    def run(self, jobs: Iterable[Job], deadline: Deadline, done: Iterable[str] = ()) -> bool:
        """Run the jobs that still fit; a job that fails leaves a row that says so. Whether none
        failed.
        """
        known, fine, broken = set(done), True, ""
        for job in jobs:
            if job.name in known:
                continue
            start = time.perf_counter()
            row: dict[str, Any] = {"status": "not run"}
            if broken:
                row["reason"] = broken
            elif job.seconds > deadline.left():
                row["reason"] = f"takes about {job.seconds:g} s, {deadline.left():.0f} s are left"
            else:
                self.content["running"] = job.name
                self.save()
                try:
                    row = {"status": "passed", **job.run()}
                except Skipped as reason:
                    row = {"status": "skipped", "reason": str(reason)}
                except Exception as error:  # the other rows are worth having all the same
                    trace = traceback.format_exc(limit=-4)
                    row = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
                    row["trace"] = trace
                    if is_fatal(error):
                        broken = f"the device failed in {job.name}"
            fine = fine and row["status"] != "failed"
            row = {"name": job.name, **row, "took": round(time.perf_counter() - start, 2)}
            self.rows.append(row)
            self.content["running"] = None
            self.save()
            print(line_of(row), flush=True)
        self.content["complete"] = all(row["status"] != "not run" for row in self.rows)
        self.save()
        return fine

    def resume(self) -> set[str]:
        """Keep the rows of the file that ran, also one in which the process was ended; their
        names.
        """
        if self.path is None or not self.path.exists():
            return set()
        found = json.loads(self.path.read_text())
        self.rows = [row for row in found["rows"] if row["status"] != "not run"]
        if found.get("running"):
            reason = "its process was ended"
            self.rows.append({"name": found["running"], "status": "failed", "reason": reason})
        return {row["name"] for row in self.rows}


def line_of(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    what = "; ".join(str(row[key]) for key in ("line", "reason") if row.get(key))
    return f"{row['status']:8} {row['name']}: {what}"


def target(name: str, value: float, limit: float, at_least: bool = False) -> dict[str, Any]:
    """What was aimed at, beside what was reached."""
    met = value >= limit if at_least else value <= limit
    return {"name": name, "limit": limit, "value": value, "at_least": at_least, "met": met}
