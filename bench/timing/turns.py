"""Two processes that take turns: one row of the benchmarks, prepared by the package of the tree in
this process and by that of the base in another, which both stay alive.

The other process runs pytest over the same files. Messages are lines of JSON: `prepare` a test and
it is `ready` in its call of `ratio`; `time` its call, as often as it is asked to; `end`, and it
tells the `outcome` of the test.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import fastguide

Call = Callable[[], object]
HERE = Path(__file__).resolve().parent


def seconds_of(call: Call, timer: Callable[[], float], warm: bool = False) -> float:
    """Of one call, or of the second of two where it is to be `warm`."""
    if warm:
        call()
    start = timer()
    call()
    return timer() - start


def clock() -> Callable[[], float]:
    """CPU seconds, which are the same beside other jobs, where there is one thread."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def timer_of(item: Any) -> Callable[[], float]:
    """The clock that the mark `benchmark(timer=...)` of a test chooses, or `clock`."""
    mark = item.get_closest_marker("benchmark")
    return clock() if mark is None else mark.kwargs.get("timer", clock())


def begin() -> None:
    """What both processes do first."""
    keep = getattr(fastguide, "keep_freed_memory", None)
    if keep is not None:  # an old base has none
        keep()


def build_of() -> dict[str, Any]:
    """How the extension was built."""
    from fastguide import _C

    return dict(_C.build_info())


class Line:
    """One end of the line between the processes."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.file = end.makefile("rw", encoding="utf-8")

    def say(self, **message: Any) -> None:
        """Send a message."""
        self.file.write(json.dumps(message) + "\n")
        self.file.flush()

    def hear(self) -> dict[str, Any]:
        """The next message; empty where the other process is gone."""
        text = self.file.readline()
        return json.loads(text) if text else {}


class Unusable(Exception):
    """The base cannot run a row, for the reason that this says."""


class Other:
    """The process of the base, seen from the tree's.

    Args:
        package: the folder to import fastguide from.
        files: of rows.
        own: folders with the base's own files of rows, for those that do not fit its package.
        log: where its output goes.
    """

    def __init__(
        self, package: Path, files: Sequence[Path], own: Sequence[Path], log: Path
    ) -> None:
        mine, theirs = socket.socketpair()
        self.log, self.line, self.under_way = log, Line(mine), False
        settings = {
            "line": theirs.fileno(),
            "package": str(package),
            "files": [str(file) for file in files],
            "own": [str(folder) for folder in own],
        }
        paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "other.py"), json.dumps(settings)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,  # not the tree's root, whose `kernels` is a package of that name
            )
        theirs.close()
        self.about = self.hear()

    def hear(self) -> dict[str, Any]:
        """Its next message.

        Raises:
            RuntimeError: it ended.
        """
        message = self.line.hear()
        if not message:
            tail = self.log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"the process of the base ended, {self.process.wait()}:\n{tail}")
        return message

    def prepare(self, test: str) -> None:
        """Begin with a test; `FILE::NAME` as pytest has it."""
        self.line.say(prepare=test)
        self.under_way = True

    def wait(self, name: str) -> None:
        """Until it is in its call of `ratio` for the row `name`.

        Raises:
            Unusable: it is not, and why.
        """
        if not self.under_way:
            raise Unusable("its test has ended")
        message = self.hear()
        if message.get("ready") == name:
            return
        if "ready" in message:
            self.end()
            raise Unusable(f"its row is {message['ready']!r}")
        self.under_way = False
        raise Unusable(message["outcome"] or "its test has no such row")

    def seconds(self, warm: bool) -> float:
        """Of its call: where that is to be warm, after its twin and itself, as in the tree's."""
        self.line.say(time=True, warm=warm)
        return float(self.hear()["seconds"])

    def end(self) -> None:
        """Of the row: its test goes on, to the next row or to its end."""
        self.line.say(end=True)

    def finish(self) -> None:
        """The test, whatever it is at."""
        while self.under_way:
            if "ready" in self.hear():
                self.end()
            else:
                self.under_way = False

    def close(self) -> None:
        """End the process."""
        self.line.end.close()
        self.line.file.close()
        try:
            self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def answer(line: Line, name: str, ours: Call, twin: Call, timer: Callable[[], float]) -> None:
    """`ratio` in the process of the base: time calls until the row ends."""
    line.say(ready=name)
    while "time" in (message := line.hear()):
        if message["warm"]:
            twin()
        line.say(seconds=seconds_of(ours, timer, message["warm"]))
