"""The comparison behind `make bench`: red where a row is slower than at the base, else green."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/timing"))
sys.path.append(str(Path(__file__).parents[2] / "bench/common"))
import base
import limits
import machine
from verdict import Ratio, ratio_of

ROOT = Path(__file__).parents[2]
# rows as those of bench/timing; what a kernel of `fastguide` takes is planted
ROWS = """
from fastguide import kernels

def test_same(ratio):
    ratio("the same", kernels.same, kernels.same, rounds=5)

def test_slower(ratio):
    ratio("slower", kernels.slower, kernels.same, rounds=5)
"""
MOVED = """
from fastguide.newer import same, slower

def test_moved(ratio):
    ratio("moved", slower, same, rounds=5)
"""
OWN = """
from fastguide import kernels

def test_moved(ratio):
    ratio("moved", kernels.slower, kernels.same, 0.9, 5)
"""
NEW = """
from fastguide.newer import same

def test_new(ratio):
    ratio("new", same, same, rounds=5)
"""


def package(folder, **seconds):
    """A fastguide with kernels that take so long, in CPU time as on the wall."""
    inside = folder / "fastguide"
    (inside / "common").mkdir(parents=True)
    (inside / "__init__.py").write_text("")
    (inside / "_C.py").write_text("def build_info():\n    return {'openmp': True}\n")
    text = (ROOT / "fastguide/common/files.py").read_text()
    (inside / "common/files.py").write_text(text)
    kernels = "import time\n"
    for name, value in seconds.items():
        kernels += f"def {name}():\n    end = time.process_time() + {value}\n"
        kernels += "    while time.process_time() < end: pass\n"
    (inside / "kernels.py").write_text(kernels)


def test_a_planted_slowdown_is_red_and_nothing_else(tmp_path):
    """By the harness itself, with two packages: 15 % is red; where modules have moved, the base's
    own rows run; what it has not is not compared, and said.
    """
    bench, tree, other = tmp_path / "bench", tmp_path / "tree", tmp_path / "build/base/abc"
    for name in ("common", "timing"):
        (bench / name).mkdir(parents=True)
        for file in sorted((ROOT / "bench" / name).glob("*.py")):
            if not file.name.startswith("bench_"):
                (bench / name / file.name).write_text(file.read_text())
    for name, rows in (("a", ROWS), ("b", MOVED), ("c", NEW)):
        (bench / f"timing/bench_{name}.py").write_text(rows)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\npython_files = ['bench_*.py']\n"
        "addopts = '--import-mode=importlib'\n"
    )
    package(tree, same=0.03, slower=0.0345)
    (tree / "fastguide/newer.py").write_text("from fastguide.kernels import *\n")
    package(other / "import", same=0.03, slower=0.03)
    (other / "bench").mkdir()
    (other / "bench/bench_b.py").write_text(OWN)
    (tmp_path / "planted.py").write_text(
        "import base, pathlib\nbase.resolve = lambda *_: 'abc'\n"
        f"base.built = lambda *_: pathlib.Path({str(other / 'import')!r})\n"
    )
    paths = [tree, tmp_path, bench / "timing"]
    # pytest-benchmark measures nothing in a worker of pytest-xdist, nor in what inherits its name
    own = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "planted", "bench/timing", "--base", "abc"],
        cwd=tmp_path,
        env={**own, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    assert "2 failed, 2 passed" in text, text
    assert re.search(r"E .*slower: 1\.1\d\d of the time at abc", text), text
    assert re.search(r"E .*moved: 1\.1\d\d of the time at abc", text), text
    assert re.search(r"^ +(0\.9|1\.0)\d+ \+- .* the same$", text, re.MULTILINE), text
    assert "new  not at the base: it has no such test" in text, text
    assert "1 of 4 rows were not compared with the base" in text, text


def test_when_a_row_is_slower():
    assert Ratio(1.15, 0.02, 9).is_slower
    assert not Ratio(1.15, 0.2, 9).is_slower  # no more than its spread
    assert not Ratio(1.09, 0.01, 9).is_slower  # no more than 10 %
    assert Ratio(0.85, 0.02, 9).is_faster
    assert Ratio(0.5, 0.01, 9).exceeds(0.4)
    assert not Ratio(0.5, 0.2, 9).exceeds(0.4)


def test_a_drift_cancels():
    drift = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    ours = [1.2 * (a + b) / 2 for a, b in pairwise(drift)]
    found = ratio_of(ours, drift)
    assert found.value == pytest.approx(1.2)
    assert found.spread == pytest.approx(0.0, abs=1e-12)
    assert ratio_of([3.0, 1.0, 1.0, 1.1], [1.0] * 5).value == pytest.approx(1.05)
    with pytest.raises(ValueError, match="other has 1 times, but it should have 2"):
        ratio_of([1.0], [1.0])
    with pytest.raises(ValueError, match="less time than the clock can tell"):
        ratio_of([1.0], [0.0, 0.0])


def test_limits_and_the_committed_baseline_fit():
    """Every limit is of a known row, and what was measured keeps it."""
    known = json.loads((ROOT / "bench/baseline.json").read_text())
    rows = {name: value for one in known.values() for name, value in one["ratios"].items()}
    for name, value in rows.items():
        limit = limits.limit_of(name)
        assert limit is None or value <= limit, name
    for one in limits.LIMITS:
        assert any(limits.limit_of(name, (one,)) for name in rows), one.rows
    assert limits.limit_of("blur [1, 2] fp32, sigma 10, against a dense convolution") == 1 / 3
    assert limits.limit_of("something new") is None
    for one in known.values():
        assert {"date", "commit", "command", "device", "versions"} <= set(one)


def test_every_result_has_one_form():
    for path in sorted((ROOT / "bench/results").glob("*.json")):
        found = json.loads(path.read_text())
        assert list(found)[:5] == ["date", "commit", "command", "device", "versions"], path.name
        assert {"cpu", "threads", "gpu"} <= set(found["device"]), path.name
    assert list(machine.where_and_when())[:5] == list(found)[:5]


def git(folder, *words):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *settings, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """Two commits on main; each builds an "extension" that says which it is."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("build/\n")
    (folder / "setup.py").write_text(
        "from pathlib import Path\n"
        "Path('fastguide/_C.py').write_text(Path('csrc/a.cpp').read_text())\n"
        "Path('../built').open('a').write('x')\n"
    )
    for number in (1, 2):
        for name in ("fastguide", "kernels", "csrc"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "__init__.py").write_text(f"number = {number}\n")
        (folder / "csrc/a.cpp").write_text("built = 1\n")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", str(number))
    return folder


def test_which_revision_is_the_base(repository):
    first, second = (git(repository, "rev-parse", name) for name in ("HEAD~1", "HEAD"))
    assert base.resolve(repository, "auto") == first  # no tag, no change
    git(repository, "tag", "v1", first)
    git(repository, "commit", "-q", "--allow-empty", "-m", "3")
    assert base.resolve(repository, "auto") == first  # the last tag
    git(repository, "checkout", "-q", "-b", "work", second)
    git(repository, "commit", "-q", "--allow-empty", "-m", "4")
    assert base.resolve(repository, "auto") == second  # where the branch left main
    git(repository, "checkout", "-q", "main")
    (repository / "csrc/a.cpp").write_text("built = 2\n")
    assert base.resolve(repository, "auto") == git(repository, "rev-parse", "HEAD")
    with pytest.raises(ValueError, match="base is 'nothing', but it should be a revision"):
        base.resolve(repository, "nothing")


def test_the_base_is_built_once_beside_the_tree(repository):
    commits = [git(repository, "rev-parse", name) for name in ("HEAD~1", "HEAD")]
    (repository / "fastguide/__init__.py").write_text("number = 3\n")  # the tree is not taken
    for number, commit in enumerate(commits, 1):
        for _ in range(2):
            folder = base.built(repository, commit)
        script = "import fastguide, fastguide.kernels as k, fastguide._C as c; "
        script += "print(fastguide.number, k.number, c.built)"
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [str(number), str(number), "1"], done.stderr
    # csrc/__init__.py differs, so each has an extension of its own
    assert (repository / "build/base/built").read_text() == "xx"
    (repository / "setup.py").write_text("raise SystemExit('no compiler')\n")
    git(repository, "commit", "-qam", "5")
    with pytest.raises(RuntimeError, match="no compiler"):
        base.built(repository, git(repository, "rev-parse", "HEAD"))
    assert not list((repository / "build/base").glob(".*"))  # nothing half done is left
