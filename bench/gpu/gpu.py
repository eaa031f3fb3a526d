"""All that a GPU can show, in one command and within nine minutes.

    python bench/gpu/gpu.py                          what `make gpu` runs
    python bench/gpu/gpu.py --device cpu --tiny      try the tool without a GPU

Builds the CUDA extension, runs the GPU tests, checks memory accesses and races, tunes the Triton
kernels (kernels/tuned.json) and runs the benchmarks. Each step has its own time limit, and one that
fails stops none of the others. bench/results/gpu-DEVICE.json is rewritten after every step, so that
a run that is killed leaves what it found. The exit status is 1 where a step failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from record import ROOT, Deadline, version_of, where_and_when, write_json
from steps import Step, run_group

HERE = Path(__file__).resolve().parent
TOTAL = 525.0  # seconds; what starting and ending take comes on top
BENCHMARKS = ("tune", "ops", "loops", "poster")


def is_installed() -> bool:
    """Whether `import fastguide` finds this source tree."""
    spec = importlib.util.find_spec("fastguide")
    here = spec is not None and spec.origin is not None
    return here and Path(str(spec.origin)).is_relative_to(ROOT) and bool(version_of("fastguide"))


def build_step(device: torch.device) -> Step:
    """The extension in place for this GPU alone; the package too, unless it is installed."""
    environment = {"MAX_JOBS": str(os.cpu_count() or 2), "FASTGUIDE_CUDA": "0"}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        environment |= {"FASTGUIDE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    if not is_installed():
        options = ["--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--editable"]
        command = [sys.executable, "-m", "pip", "install", *options, "."]
    return Step("build", command, 160.0, environment=environment)


def sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    folders = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    path = os.pathsep.join(
        [os.environ.get("PATH", ""), *(f"{folder}/bin" for folder in folders if folder)]
    )
    return shutil.which("compute-sanitizer", path=path)


def groups(device: torch.device, tiny: bool, parts: Path, tuned: Path) -> list[list[Step]]:
    """The steps, those side by side that are not timed."""
    python, gpu = sys.executable, device.type == "cuda"
    needs = None if gpu else "needs a GPU"
    tool = sanitizer()
    common = ["--device", str(device), *(["--tiny"] if tiny else [])]
    # where every tensor is an allocation of its own, an access past its end is seen
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    unsupported = ("Device not supported", "compute-sanitizer does not support this device here")

    def bench(name: str, script: str, limit: float, *options: str, part: str = "") -> Step:
        path = parts / f"{part or name}.json"
        files = ["--out", str(path), "--seconds", "{seconds}"]
        command = [python, str(HERE / script), *common, *files, *options]
        return Step(name, command, limit, part=path, again="--resume" in options)

    def check(name: str) -> Step:
        options = ["--tool", name, "--error-exitcode", "9", "--target-processes"]
        command = [tool or "", *options, "application-only", python, str(HERE / "every_op.py")]
        missing = needs or (None if tool else "compute-sanitizer is not installed")
        return Step(name, command, 150.0, environment=alone, missing=missing, skips=[unsupported])

    def warm(name: str, script: str) -> Step:
        command = [python, str(HERE / script), "--warm", *common, "--seconds", "{seconds}"]
        return Step(name, command, 120.0, missing=needs)

    tests = Step("tests", [python, str(HERE / "gpu_tests.py")], 170.0)
    return [
        [build_step(device)],
        [
            tests,
            check("memcheck"),
            check("racecheck"),
            warm("compile candidates", "tune.py"),
            warm("compile networks", "loops.py"),
        ],
        [bench("tune", "tune.py", 75.0, "--tuned", str(tuned))],
        [bench("ops", "ops_gpu.py", 50.0)],
        [bench("loops", "loops.py", 110.0)],
        [bench("poster", "poster.py", 150.0)],
        [bench("loops, the rest", "loops.py", 400.0, "--resume", part="loops")],
        [bench("poster, the rest", "poster.py", 400.0, "--resume", part="poster")],
    ]


class Results:
    """The file of results, whole after every step."""

    def __init__(self, path: Path, head: dict[str, Any], parts: Path) -> None:
        self.path, self.content, self.parts = path, {**head, "steps": []}, parts

    def add(self, record: dict[str, Any]) -> None:
        """A step ended: note it."""
        self.content["steps"].append(record)
        print(f"{record['status']:8} {record['name']} {record.get('seconds', '')}", flush=True)
        if record["status"] in ("failed", "skipped", "not run"):
            print(f"         {record.get('reason', '')}", flush=True)
        self.save()

    def collect(self) -> None:
        """The parts, and their targets in one list."""
        for name in BENCHMARKS:
            part = self.parts / f"{name}.json"
            if part.exists():
                self.content[name] = json.loads(part.read_text())
        self.content["targets"] = targets(self.content)

    def save(self) -> None:
        """Take over what the benchmarks wrote so far, and write the file."""
        self.collect()
        write_json(self.path, self.content)


def targets(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target of every row, with the row's name."""
    found = []
    for name in BENCHMARKS:
        part = content.get(name, {})
        for row in part.get("rows", ()):
            found += [{"row": row["name"], **one} for one in row.get("targets", ())]
        found += [{"row": "across rows", **one} for one in part.get("across", ())]
    return found


def unfinished(part: Path | None) -> bool:
    """Whether a benchmark left rows: they did not fit, or it was ended."""
    if part is None or not part.exists():
        return False
    return not json.loads(part.read_text()).get("complete", False)


def report(content: dict[str, Any]) -> None:
    """Print the benchmarks' lines and the targets."""
    for name in BENCHMARKS:
        for row in content.get(name, {}).get("rows", ()):
            print(f"{name:6} {row['status']:8} {row['name']}: {row.get('line', row.get('reason'))}")
    for one in content.get("targets", ()):
        word, sign = "met" if one["met"] else "MISSED", ">=" if one["at_least"] else "<="
        print(f"{word:6} {one['row']}: {one['name']} {one['value']:.3f} ({sign} {one['limit']})")
    for record in content["steps"]:
        seconds = f"{record['seconds']:6.1f} s" if "seconds" in record else " " * 8
        print(f"{record['status']:8} {seconds}  {record['name']}: {record.get('reason', '')}")


def slug(name: str) -> str:
    """`NVIDIA H200` as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main(arguments: list[str] | None = None) -> int:
    """1 where a step failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="file; bench/results/gpu-DEVICE.json by default")
    parser.add_argument("--tuned", type=Path, help="file; kernels/tuned.json by default")
    parser.add_argument("--seconds", type=float, default=TOTAL)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the tool")
    parser.add_argument("--only", help="names of steps, with commas; build is one")
    parser.add_argument("--commit", help="where there is no git to ask")
    given = parser.parse_args(arguments)
    deadline, device = Deadline(given.seconds), torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU; --device cpu --tiny tries the tool without one")
    head = {**where_and_when(device, given.commit), "tiny": given.tiny}
    card = head["device"]["gpu"] or "cpu"
    trial = ROOT / "out" / "gpu"
    folder = trial if given.tiny else ROOT / "bench/results"
    path = (given.out or folder / f"gpu-{slug(card)}.json").absolute()
    tuned = given.tuned or (trial / "tuned.json" if given.tiny else ROOT / "kernels/tuned.json")
    wanted = given.only.split(",") if given.only else None
    with tempfile.TemporaryDirectory() as name:
        results = Results(path, head, Path(name))
        results.save()
        for group in groups(device, given.tiny, results.parts, tuned.absolute()):
            chosen = [step for step in group if wanted is None or step.name in wanted]
            chosen = [step for step in chosen if not step.again or unfinished(step.part)]
            run_group(chosen, deadline, results.parts, results.add, results.save)
    results.content["took"] = round(given.seconds - deadline.left(), 1)
    results.save()
    report(results.content)
    print(f"wrote {results.path}")
    return int(any(record["status"] == "failed" for record in results.content["steps"]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the steps under way end too
    sys.exit(main())
