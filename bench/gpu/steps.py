"""Commands that run one after the other or side by side, each with its own time limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import Deadline

ROOT = Path(__file__).resolve().parents[2]
TAIL = 4000  # characters of a step's output that are kept
TICK = 5.0  # seconds
LEAST = 5.0  # seconds that a step needs to be worth starting


@dataclass(frozen=True)
class Step:
    """A command.

    Args:
        command: "{seconds}" in it becomes the time that it has, less `margin`.
        limit: seconds, after which it is killed with all that it started.
        part: the file in which it leaves its results.
        environment: besides this process's own.
        missing: why it cannot run here; None where it can.
        skips: (a pattern of its output, why that means that it could not run here).
        again: whether it only runs what an earlier step left.
    """

    name: str
    command: Sequence[str]
    limit: float
    part: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: str | None = None
    skips: Sequence[tuple[str, str]] = ()
    margin: float = 8.0
    again: bool = False


@dataclass
class Running:
    """A step under way."""

    step: Step
    process: subprocess.Popen[bytes]
    log: Path
    start: float
    limit: float


def run_group(
    steps: Sequence[Step],
    deadline: Deadline,
    folder: Path,
    done: Callable[[dict[str, Any]], None],
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run the steps side by side and give `done` the record of each as it ends; `tick` is called
    every TICK seconds meanwhile.
    """
    running = []
    for step in steps:
        left = deadline.left()
        if step.missing:
            done({"name": step.name, "status": "skipped", "reason": step.missing})
        elif left < LEAST:
            done({"name": step.name, "status": "not run", "reason": "no time was left"})
        else:
            running.append(start_step(step, min(step.limit, left), folder))
    ticked = time.monotonic()
    try:
        while running:
            for one in list(running):
                late = time.monotonic() - one.start > one.limit
                if one.process.poll() is None and not late:
                    continue
                running.remove(one)
                done(finish(one, late))
            if time.monotonic() - ticked > TICK:
                ticked = time.monotonic()
                tick()
            time.sleep(0.05)
    finally:
        for one in running:  # interrupted
            kill(one.process)


def start_step(step: Step, limit: float, folder: Path) -> Running:
    """Start it in a process group of its own."""
    seconds = f"{max(1.0, limit - step.margin):.0f}"
    command = [word.replace("{seconds}", seconds) for word in step.command]
    log = folder / f"{re.sub(r'[^a-z0-9]+', '-', step.name.lower())}.log"
    print(f"--- {step.name} ({limit:.0f} s at most)", flush=True)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **step.environment},
            start_new_session=True,
        )
    return Running(step, process, log, time.monotonic(), limit)


def finish(one: Running, late: bool) -> dict[str, Any]:
    """The record of a step that ended, or is late and is ended here."""
    late = late and one.process.poll() is None
    if late:
        kill(one.process)
    code = one.process.wait()
    text = one.log.read_text(errors="replace")
    record: dict[str, Any] = {
        "name": one.step.name,
        "status": "failed" if code or late else "passed",
        "seconds": round(time.monotonic() - one.start, 1),
    }
    if late:
        record["reason"] = f"took longer than its {one.limit:.0f} s"
    elif code:
        record["reason"] = f"exit status {code}"
        for pattern, reason in one.step.skips:
            if re.search(pattern, text):
                record |= {"status": "skipped", "reason": reason}
    return {**record, "tail": text[-TAIL:]}


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(2.0)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
