"""The files that studies write: how they begin, how a stopped run goes on, what an error prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1] / "common"))
from machine import ROOT, where_and_when

from fastguide.common.files import write_atomic
from fastguide.common.heap import keep_freed_memory

RESULTS = ROOT / "bench/results"
IMAGES = ROOT / "docs/images"
console = Console(width=None if sys.stdout.isatty() else 110)


def keep(path: Path, results: dict[str, Any]) -> None:
    """Write results, whole or not at all."""
    write_atomic(path, (json.dumps(results, indent=1) + "\n").encode())


def kept(
    path: Path, run: dict[str, Any], fixed: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any] | None:
    """The results at `path` for `run` to go on with; None where there are none.

    Raises:
        ValueError: what all rows of a file have in common, `fixed`, is not that of this run.
    """
    if not path.is_file():
        return None
    results: dict[str, Any] = json.loads(path.read_text())
    before, now = fixed(results), fixed(run)
    for name in now:
        if before[name] != now[name]:
            raise ValueError(
                f"{name} is {now[name]!r}, but to go on with {path} it should be {before[name]!r}"
            )
    results.setdefault("resumed", []).append(run)
    return results


def kept_or_anew(
    path: Path, run: dict[str, Any], fixed: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """The results at `path` to go on with, or new ones; says why it leaves old ones behind."""
    try:
        return kept(path, run, fixed) or run
    except ValueError as error:
        console.print(f"measuring anew: {error}")
        return run


def start(main: Callable[..., None]) -> None:
    """Run a study as a command: wrong input ends it with one line."""
    keep_freed_memory()
    try:
        typer.run(main)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")


__all__ = [
    "IMAGES",
    "RESULTS",
    "ROOT",
    "console",
    "keep",
    "kept",
    "kept_or_anew",
    "start",
    "where_and_when",
]
