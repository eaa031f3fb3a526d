"""Commands on a disk that becomes full: each ends with an error that names the file, leaves nothing
half-written, and goes on once there is space.

As root on Linux the disk is a small tmpfs; elsewhere no file may grow beyond a limit.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attack import Attack, Broken, draw
from attack_kills import COMMANDS, Scene
from nursery import Limits, Nursery


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """`folder` as a file system of `size` bytes, if that can be had."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fill(scene: Scene, out: Path, source: random.Random) -> str:
    """Run the command on a full disk, then with space."""
    whole = size_of(scene.folder / "whole")
    space = source.randrange(4096, max(8192, int(whole * 1.5)))
    with small_disk(out, space) as mounted:
        limits = Limits() if mounted else Limits(file=space // 4)
        outcome = scene.run(scene.name, out, limits, may_fail=True)
        if outcome.error and "OSError" not in outcome.error:
            raise Broken(f"{outcome}")
        if outcome.error and str(out) not in outcome.message:
            raise Broken(f"its error names no file: {outcome}")
        if not scene.holds(out):
            raise Broken("it left something else than a whole run does")
        left = scene.nursery.call("leftovers", [str(out)]).value
        if left:
            raise Broken(f"it leaves {left}")
        after = scene.folder / "after"
        shutil.copytree(out, after)
    scene.run(scene.name, after)
    if scene.fingerprint(after) != scene.wanted:
        raise Broken("it went on to something else")
    shutil.rmtree(after)
    how = "a full file system" if mounted else "files that may not grow"
    return f"an error on {how}, then went on" if outcome.error else "it had space enough"


def attack(seed: int, numbers: range) -> Counter[str]:
    """Each number is one command on one disk."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place, Nursery("victim") as nursery:
        scenes: dict[str, Scene] = {}
        for number, source in draw(seed, numbers):
            name = list(COMMANDS)[number % len(COMMANDS)]
            if name not in scenes:
                (Path(place) / name).mkdir()
                scenes[name] = Scene(nursery, Path(place) / name, name)
            out = Path(place) / str(number)
            try:
                outcomes[fill(scenes[name], out, source)] += 1
            except Broken as error:
                raise Broken(f"disk {number}, {name}: {error}") from error
            shutil.rmtree(out)
    return outcomes


ATTACKS = (
    Attack(
        "disk",
        "A command on a full disk ends with an error that names the file, leaves nothing "
        "half-written, and goes on once there is space",
        attack,
        count=60,
        bounded=0,
    ),
)
