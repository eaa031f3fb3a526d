"""The process that runs rows with the package of the base: started by `turns.Other`.

Rows come from the tree's files. Where one of these cannot be imported with the base's package,
whose modules may have had other names, the base's own file of that name is taken.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from turns import HERE, Call, Line, answer, begin, build_of, timer_of

MINE = [str(HERE), str(HERE.parent / "common")]


class Side:
    """pytest's plugin that runs the tests it is told to.

    Args:
        line: to the process of the tree.
        folders: for each file of rows, where its helpers lie.
    """

    def __init__(self, line: Line, folders: dict[Path, list[str]]) -> None:
        self.line, self.folders = line, folders
        self.places = {path for paths in folders.values() for path in paths}

    @pytest.fixture
    def ratio(self, request: pytest.FixtureRequest) -> Callable[..., float]:
        """Answers instead of judging; takes what the fixture of conftest.py takes."""
        timer = timer_of(request.node)

        def measure(name: str, ours: Call, twin: Call, *_: Any, **__: Any) -> float:
            for call in (twin, ours):
                call()
            answer(self.line, name, ours, twin, timer)
            return 1.0

        return measure

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Iterator[None]:
        """The helpers of a file are those beside it."""
        if isinstance(collector, pytest.Module):
            look_in(self.folders[collector.path], self.places)
        yield

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Tests in the order in which they are asked for."""
        from _pytest.runner import runtestprotocol

        tests = {f"{item.path.name}::{item.name}": item for item in session.items}
        while message := self.line.hear():
            if "prepare" not in message:
                continue
            item, reasons = tests.get(message["prepare"]), []
            if item is None:
                reasons = ["it has no such test"]
            else:
                for report in runtestprotocol(item, log=False):
                    if not report.passed:
                        reasons.append(str(report.longrepr).strip().splitlines()[-1])
                        print(report.longreprtext, flush=True)
            self.line.say(outcome="; ".join(reasons))
        return True


def look_in(folders: list[str], places: set[str]) -> None:
    """Import helpers from `folders`, and from no other of `places`."""
    sys.path[:] = [*folders, *(path for path in sys.path if path not in places)]
    for name, module in list(sys.modules.items()):
        folder = str(Path(getattr(module, "__file__", None) or "").parent)
        if folder in places and folder not in folders and name not in ("turns", "__main__"):
            del sys.modules[name]


def chosen(file: Path, own: list[str]) -> tuple[Path, list[str]]:
    """The file to take rows from, and where its helpers lie."""
    look_in(MINE, {*MINE, *own})
    spec = importlib.util.spec_from_file_location("probe", file)
    assert spec is not None
    assert spec.loader is not None
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    except (ImportError, AttributeError) as error:
        for folder in own:
            if (found := Path(folder, file.name)).exists():
                print(f"{file.name} of the base itself: {error}", flush=True)
                return found, own
        print(f"{file.name} cannot be imported: {error}", flush=True)
    except pytest.skip.Exception:
        pass
    return file, MINE


def main() -> int:
    """pytest over the files, until the tree's process is gone."""
    settings = json.loads(sys.argv[1])
    import fastguide

    found = Path(str(fastguide.__file__)).resolve()
    if not found.is_relative_to(Path(settings["package"], "fastguide").resolve()):
        sys.exit(f"fastguide was imported from {found}, but not from {settings['package']}")
    begin()
    line = Line(socket.socket(fileno=settings["line"]))
    line.say(build=build_of())
    files = dict(chosen(Path(file), settings["own"]) for file in settings["files"])
    options = ["-q", "--noconftest", "--continue-on-collection-errors", "--import-mode=importlib"]
    options += ["-p", "no:cacheprovider", "-c", str(HERE.parents[1] / "pyproject.toml")]
    return int(pytest.main([*map(str, files), *options], plugins=[Side(line, files)]))


if __name__ == "__main__":
    sys.exit(main())
