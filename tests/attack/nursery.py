"""A process that has imported the victim once and forks a child for every call, with limits.

So a call that crashes, hangs, eats memory or is killed harms no other, and costs no import. The
process itself computes nothing before it forks: a child may use any number of threads.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# what the audit hooks report before a file changes: https://docs.python.org/3/library/audit_events
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link", "os.symlink")


@dataclass(frozen=True)
class Limits:
    """Of one call.

    Args:
        seconds: after which it is killed; `hung` is then True.
        memory: bytes of address space beyond those of the process that forks.
        kill_after: seconds after which it is killed, which is then no hang.
        kill_before: the call kills itself before its change of this number (0, 1, ...) to a file
            below `below`.
        below: a folder.
        file: bytes beyond which no file may grow.
    """

    seconds: float = 60.0
    memory: int | None = None
    kill_after: float | None = None
    kill_before: int | None = None
    below: str = ""
    file: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Args:
        value: what it returned, if it did.
        error: the name of the exception's class and of those it derives from, or ().
        message: of the exception.
        signal: that ended it, or 0.
        hung: whether it was killed at its limit of time.
        memory: most bytes that it held beyond those of the process that forked it.
        changes: how many changes to files below `below` it lived to make.
    """

    value: Any = None
    error: tuple[str, ...] = ()
    message: str = ""
    signal: int = 0
    hung: bool = False
    memory: int = 0
    changes: int = 0


class Nursery:
    """Calls functions of `module` (importable from tests/attack), each in a forked child."""

    def __init__(self, module: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )

    def call(self, function: str, arguments: Any, limits: Limits | None = None) -> Outcome:
        """`module.function(*arguments)`, arguments and result as JSON has them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"function": function, "arguments": arguments}
        request["limits"] = asdict(limits or Limits())
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        if not reply:
            raise RuntimeError(f"the nursery ended with {self.process.wait()}")
        fields = json.loads(reply)
        return Outcome(**{**fields, "error": tuple(fields.get("error", ()))})

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def serve(module: str) -> None:
    """Answer requests, a line each, until there are no more."""
    sys.path.insert(0, str(Path(__file__).parent))
    victim = importlib.import_module(module)
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        outcome = fork(victim, request, Limits(**request["limits"]))
        print(json.dumps(asdict(outcome)), file=replies, flush=True)


def fork(victim: Any, request: dict[str, Any], limits: Limits) -> Outcome:
    """One call in a child."""
    ours, theirs = os.pipe()
    before = held("VmRSS")
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.setpgid(0, 0)
        run_child(victim, request, limits, theirs)
    os.close(theirs)
    start = time.monotonic()
    allowed = limits.seconds if limits.kill_after is None else limits.kill_after
    written = b""
    with os.fdopen(ours, "rb", buffering=0) as pipe:
        while True:
            left = start + allowed - time.monotonic()
            ready = select.select([pipe], [], [], max(left, 0.0))[0]
            if not ready:
                break
            part = pipe.read(1 << 16)
            if not part:
                break
            written += part
        late = not ready
    with contextlib.suppress(ProcessLookupError):
        if late:
            os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    memory = max(0, usage.ru_maxrss * 1024 - before)
    if os.WIFSIGNALED(status):
        hung = late and limits.kill_after is None
        return Outcome(signal=os.WTERMSIG(status), hung=hung, memory=memory)
    return Outcome(**json.loads(written), memory=memory)


def run_child(victim: Any, request: dict[str, Any], limits: Limits, pipe: int) -> None:
    """The child: sets its limits, makes the call, writes what became of it, and ends."""
    reply: dict[str, Any]
    seen = [0]
    try:
        if limits.memory is not None:
            most = held("VmSize") + limits.memory
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        if limits.file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file, limits.file))
        if limits.kill_before is not None:
            kill_before(limits.kill_before, limits.below, seen)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            if "-v" not in sys.argv:
                os.dup2(null.fileno(), 2)
            value = getattr(victim, request["function"])(*request["arguments"])
        reply = {"value": value}
    except BaseException as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        reply = {"error": names, "message": str(error) or repr(error)}
        if "-v" in sys.argv:
            traceback.print_exc()
    os.write(pipe, json.dumps({**reply, "changes": seen[0]}).encode())
    os._exit(0)


def kill_before(number: int, below: str, seen: list[int]) -> None:
    """End this process by SIGKILL before its change `number` to a file below `below`; those before
    are counted in `seen`.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not str(arguments[0]).startswith(below):
            return
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if reads:
            return
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1

    sys.addaudithook(hook)


def held(what: str) -> int:
    """Bytes of VmRSS or VmSize of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {what}")


if __name__ == "__main__":
    serve(sys.argv[1])
