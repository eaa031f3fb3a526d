"""Launch settings of the Triton kernels, measured: writes kernels/tuned.json for this GPU.

    python bench/gpu/tune.py [--only step,gram] [--seconds 60] [--tuned FILE] [--out FILE]
    python bench/gpu/tune.py --warm            compile all candidates, so that a later run need not
    python bench/gpu/tune.py --device cpu      try the tool, in Triton's interpreter

For each case by which a kernel looks its settings up, each candidate is compiled, must not spill,
must compute what the default does, and is timed; the fastest ones take turns with the default, and
the best replaces it where it is faster by more than the noise. Entries of other GPUs are kept.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from op_cases import OpCase, difference
from record import Deadline, Job, Report, options, write_json
from timing import sets_for, stopwatch
from tune_kernels import KERNELS, Kernel, Settings

from fastguide.kernels import tuning

Watch = Callable[[], float]
Clock = Callable[[Sequence[OpCase], torch.device], Watch]
LEAST_GAIN = 0.01  # smaller ones are not worth an entry
FINALISTS = 2
ROUNDS = 9


def graph_clock(cases: Sequence[OpCase], device: torch.device) -> Watch:
    """What gives the seconds of one launch."""
    launches = [case.launch for case in cases if case.launch is not None]
    return stopwatch(launches, device, target=0.003)


@contextmanager
def launched() -> Iterator[list[Any]]:
    """The compiled kernels that run until it is closed."""
    from triton.runtime.jit import JITFunction

    kernels: list[Any] = []
    run = JITFunction.run

    def recorded(self: Any, *arguments: Any, **settings: Any) -> Any:
        kernels.append(run(self, *arguments, **settings))
        return kernels[-1]

    JITFunction.run = recorded
    try:
        yield kernels
    finally:
        JITFunction.run = run


def why_not(kernel: str, settings: Settings, case: OpCase, want: torch.Tensor) -> str | None:
    """Why a candidate cannot be used; None where it can."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    assert case.launch is not None
    case.reset()
    with tuning.trial(kernel, settings), launched() as kernels:
        try:
            got = case.launch()
        except (OutOfResources, CompilationError, PTXASError) as error:
            return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    for one in kernels:
        spills = getattr(one, "n_spills", None)
        if spills != 0 and one is not None:
            return f"spills {spills}" if spills is not None else "does not say what it spills"
    found = difference(got, want)
    if not found <= max(case.tolerance, 1e-5):
        return f"differs from the default by {found:.1e}"
    return None


def tune_case(
    name: str,
    kernel: Kernel,
    makers: Sequence[Callable[[torch.device], OpCase]],
    device: torch.device,
    clock: Clock,
    rejected: Callable[[str, Settings, OpCase, torch.Tensor], str | None] = why_not,
    count: int = ROUNDS,
) -> dict[str, Any]:
    """The best settings for one case of `lookup`.

    The figure of a candidate is the geometric mean over the sizes of its time over the default's.
    """
    default = tuning.DEFAULTS[name]
    sizes = []
    for make in makers:
        first = make(device)
        more = sets_for(first.moved, device) - 1
        sizes.append([first, *(make(device) for _ in range(more))])

    def watches(settings: Settings) -> list[Watch]:
        """One for each size; what a graph captured stays as it was."""
        with tuning.trial(name, settings):
            return [clock(cases, device) for cases in sizes]

    def seconds(settings: Settings, one: Sequence[Watch], rounds: int = 1) -> list[float]:
        with tuning.trial(name, settings):
            return medians([[watch() for watch in one] for _ in range(rounds)])

    wants = []
    with tuning.trial(name, default) as seen:
        for cases in sizes:
            cases[0].reset()
            wants.append(cases[0].launch().clone())  # type: ignore[misc]
    if len(seen) != 1:
        raise ValueError(f"the inputs of one case of {name} look up {sorted(seen)}")
    usable, reasons = [], {}
    for candidate in kernel.candidates:
        settings = {**default, **candidate}
        if settings == default:
            continue
        reason = None
        for cases, want in zip(sizes, wants, strict=True):
            reason = reason or rejected(name, settings, cases[0], want)
        if reason:
            reasons[label(candidate)] = reason
        else:
            usable.append(settings)

    of_default = watches(default)
    base = seconds(default, of_default, 3)
    quick, of_usable = [], [watches(settings) for settings in usable]
    for i, settings in enumerate(usable):
        quick.append((ratio(seconds(settings, of_usable[i], 3), base), i))
    finalists = [i for _, i in sorted(quick)[:FINALISTS]]
    # the default twice: its two figures differ by the noise alone
    rounds: dict[int, list[list[float]]] = {i: [] for i in (-2, -1, *finalists)}
    for _ in range(count):
        for i in rounds:
            settings, one = (default, of_default) if i < 0 else (usable[i], of_usable[i])
            rounds[i].append(seconds(settings, one))
    base = medians(rounds[-1])
    again = medians(rounds[-2])
    noise = max(abs(math.log(a / b)) for a, b in zip(again, base, strict=True))
    best, figure = default, 1.0
    for i in finalists:
        settings, mine = usable[i], medians(rounds[i])
        each = [m / min(a, b) for m, a, b in zip(mine, base, again, strict=True)]
        mean = math.exp(statistics.mean(math.log(r) for r in each))
        if mean < min(figure, 1.0 - max(LEAST_GAIN, noise)) and max(each) <= 1.0 + noise:
            best, figure = settings, mean
    (case,) = seen
    return {
        "kernel": name,
        "case": case,
        "settings": dict(best),
        "replaced": best is not default,
        "time_over_default": figure,
        "noise": noise,
        "default_seconds": base,
        "quick": {label(changes(usable[i], default)): value for value, i in sorted(quick)},
        "rejected": reasons,
    }


def medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Of each column."""
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def ratio(mine: Sequence[float], base: Sequence[float]) -> float:
    """The geometric mean of the quotients."""
    return math.exp(statistics.mean(math.log(a / b) for a, b in zip(mine, base, strict=True)))


def changes(settings: Settings, default: Settings) -> dict[str, int]:
    """What is not the default's."""
    return {k: v for k, v in settings.items() if v != default[k]}


def label(settings: Settings) -> str:
    """`BLOCK 256, num_warps 2`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def merged(old: tuning.Tuned, device: str, rows: Sequence[Mapping[str, Any]]) -> tuning.Tuned:
    """`old` with the measured cases of one device: an entry where a candidate replaces the default,
    none where the default stays. In the order of DEFAULTS, then of the alphabet.
    """
    new = {
        kernel: {d: dict(cases) for d, cases in devices.items()} for kernel, devices in old.items()
    }
    for row in rows:
        cases = new.setdefault(row["kernel"], {}).setdefault(device, {})
        cases.pop(row["case"], None)
        if row["replaced"]:
            cases[row["case"]] = dict(row["settings"])
    return {
        kernel: {
            d: dict(sorted(cases.items())) for d, cases in sorted(new[kernel].items()) if cases
        }
        for kernel in tuning.DEFAULTS
        if any(new.get(kernel, {}).values())
    }


def tune(
    names: Sequence[str],
    device: torch.device,
    path: Path,
    report: Report,
    deadline: Deadline,
    clock: Clock = graph_clock,
    tiny: bool = False,
    **options: Any,
) -> bool:
    """Tune what fits before the deadline and write `path` after each case. Whether none failed."""

    def job(name: str, makers: Sequence[Callable[[torch.device], OpCase]]) -> dict[str, Any]:
        row = tune_case(name, KERNELS[name], makers, device, clock, **options)
        tuned = merged(tuning.read_tuned(path), tuning.device_name(device), [row])
        tuning.check_tuned("the new entries", tuned)
        write_json(path, tuned)
        kept = (
            "the default stays"
            if not row["replaced"]
            else label(changes(row["settings"], tuning.DEFAULTS[name]))
        )
        best = f"{row['time_over_default']:.3f} of the default's time, noise {row['noise']:.3f}"
        return {**row, "line": f"{row['case']}: {kept} ({best})"}

    jobs = []
    for name in names:
        cases = [[KERNELS[name].tiny]] if tiny else KERNELS[name].cases
        for i, makers in enumerate(cases):
            jobs.append(Job(f"{name} {i}", partial(job, name, makers), 3.0))
    return report.run(jobs, deadline)


def warm(names: Sequence[str], device: torch.device, deadline: Deadline) -> None:
    """Compile every candidate of the kernels, which Triton keeps on disk."""
    for name in names:
        for makers in KERNELS[name].cases:
            case = makers[-1](device)  # the kernels are those of the other sizes
            nothing = torch.zeros((), device=device)
            for candidate in ({}, *KERNELS[name].candidates):
                if deadline.left() == 0.0:
                    return
                why_not(name, {**tuning.DEFAULTS[name], **candidate}, case, nothing)


def warm_beside(names: Sequence[str], device: str, seconds: float) -> int:
    """`warm` with a process for each kernel."""
    command = [sys.executable, __file__, "--warm", "--device", device, "--seconds", str(seconds)]
    running = [subprocess.Popen([*command, "--only", name]) for name in names]
    return max(process.wait() for process in running)


def main(arguments: list[str] | None = None) -> int:
    """1 where a case failed."""
    parser = options(__doc__, "one small case a kernel")
    parser.add_argument("--only", default=",".join(KERNELS), help="kernels")
    parser.add_argument("--tuned", type=Path, default=tuning.TUNED)
    parser.add_argument("--warm", action="store_true")
    given = parser.parse_args(arguments)
    names = given.only.split(",")
    unknown = [name for name in names if name not in KERNELS]
    if unknown:
        parser.error(f"--only has {unknown}, but the kernels are {', '.join(KERNELS)}")
    deadline, device = Deadline(given.seconds), torch.device(given.device)
    torch.manual_seed(0)
    if given.warm and len(names) > 1:
        return warm_beside(names, given.device, given.seconds)
    if given.warm:
        warm(names, device, deadline)
        return 0
    report = Report(given.out, {"device": tuning.device_name(device)})
    fine = tune(
        names,
        device,
        given.tuned,
        report,
        deadline,
        tiny=given.tiny,
        count=1 if given.tiny else ROUNDS,
    )
    report.content["tuned"] = json.loads(given.tuned.read_text()) if given.tuned.exists() else {}
    report.save()
    return 0 if fine else 1


if __name__ == "__main__":
    if any(word.endswith("cpu") for word in sys.argv):
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    sys.exit(main())
