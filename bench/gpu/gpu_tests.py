"""The tests that need a GPU, in several processes at once: they mostly compile kernels.

    python bench/gpu/gpu_tests.py [--jobs 8] [arguments for pytest]

Runs tests/test_gpu*.py, and of every other test file that asks for a GPU the tests whose
parameters name "cuda".
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def files(folder: Path) -> list[Path]:
    """Test files that ask whether there is a GPU."""
    return [p for p in sorted(folder.rglob("test_*.py")) if "cuda.is_available()" in p.read_text()]


class Share:
    """Of the tests that need a GPU, keeps number `index`, and every `count`-th from there."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        wanted = [
            item
            for item in items
            if item.path.name.startswith("test_gpu") or "cuda" in item.name.partition("[")[2]
        ]
        kept = wanted[self.index :: self.count]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def run_share(index: int, count: int, paths: list[Path], arguments: list[str]) -> int:
    """pytest in this process; no tests at all are fine."""
    import pytest

    options = ["-q", "-rf", "--no-header", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    code = pytest.main([*map(str, paths), *options, *arguments], plugins=[Share(index, count)])
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else int(code)


def run_all(jobs: int, paths: list[Path], arguments: list[str]) -> int:
    """A process for each share; prints what failed, and the sum."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for index in range(jobs):
            log = Path(folder) / str(index)
            command = [sys.executable, __file__, "--share", f"{index}/{jobs}", *arguments]
            with open(log, "w") as file:
                process = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
                )
            running.append((process, log))
        codes = [process.wait() for process, _ in running]
        texts = [log.read_text(errors="replace") for _, log in running]
    for code, text in zip(codes, texts, strict=True):
        if code:
            print(text[-4000:])
    counts = total(texts)
    for text in texts:
        for line in re.findall(r"^(?:FAILED|ERROR) .*", text, re.MULTILINE):
            print(line[:300])
    print(", ".join(f"{count} {what}" for what, count in counts.items()) or "no tests")
    return max(codes)


def total(texts: list[str]) -> dict[str, int]:
    """The sums of pytest's last lines: {"passed": 12, "skipped": 3}."""
    counts: dict[str, int] = {}
    for text in texts:
        last = text.strip().splitlines()[-1] if text.strip() else ""
        for count, what in re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)", last):
            counts[what] = counts.get(what, 0) + int(count)
    return counts


def main(arguments: list[str] | None = None) -> int:
    """pytest's exit status; the largest one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 4)))
    parser.add_argument("--share", help="INDEX/COUNT: only these, in this process")
    given, rest = parser.parse_known_args(arguments)
    paths = files(ROOT / "tests")
    if given.share:
        index, count = map(int, given.share.split("/"))
        return run_share(index, count, paths, rest)
    return run_all(given.jobs, paths, rest)


if __name__ == "__main__":
    sys.exit(main())
