"""Commands that write files and are killed at any moment, and go on.

Half of the kills come at a random time, half right before a random change to a file: its creation,
its renaming. After each the folder holds no model or a whole one (no image or a whole one), and the
command is run again, with more kills, to its end. Then it has written, to the last bit, what a run
that was left alone writes.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from attack import Attack, Broken, draw
from nursery import Limits, Nursery, Outcome

SMALL = "--batch 8 --seed 3 --save-every 2"
TOWER = "--width 8 --multipliers 1,2 --attention 2 --head-channels 8 --groups 4"
COMMANDS = {
    "train": f"{{data}} {{out}} {SMALL} --width 24 --depth 1 --patch 2 --attention-heads 2 "
    "--steps 7 --snapshot 4 --lengths 0.05,0.1 --keep-every 3",
    "classifier": f"{{data}} {{out}} {SMALL} {TOWER} --steps 5",
    "clip": f"{{data}} {{out}} {SMALL} {TOWER} --steps 4 "
    "--dimensions 8 --text-width 16 --text-depth 1 --text-heads 2",
    "sims": "{model} {out} --samples 16 --sample-steps 2 --steps 3 --batch 8",
    "ema": "{model} {out} --length 0.07",
    "sample": "{model} --out {out} --seeds 0-19 --steps 2 --batch 8",
}
READER = {"classifier": "classifier", "clip": "clip", "sample": "images"}
READER = {name: READER.get(name, "load") for name in COMMANDS}
NEVER = 1 << 60


def write_images(folder: Path) -> None:
    """Twenty-four images of three classes, as IDX files."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    pixels = rng.integers(0, 256, (24, 8, 8), dtype=np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", np.arange(24) % 3)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


class Scene:
    """A folder with data and a model, and what a run of the command that is left alone makes."""

    def __init__(self, nursery: Nursery, folder: Path, name: str) -> None:
        self.nursery, self.folder, self.name = nursery, folder, name
        write_images(folder / "data")
        if "{model}" in COMMANDS[name]:
            self.run("train", folder / "model")
        whole = Limits(kill_before=NEVER, below=str(folder / "whole"))
        start = time.perf_counter()
        self.changes = self.run(name, folder / "whole", whole).changes
        self.seconds = time.perf_counter() - start
        self.wanted = self.fingerprint(folder / "whole")

    def run(
        self, name: str, out: Path, limits: Limits | None = None, may_fail: bool = False
    ) -> Outcome:
        """Run a command; anything but its end or the kill that was asked for is an error, unless
        it `may_fail`.
        """
        places = {"data": self.folder / "data", "model": self.folder / "model", "out": out}
        arguments = [name, *(part.format(**places) for part in COMMANDS[name].split())]
        outcome = self.nursery.call("command", arguments, limits)
        if (
            (outcome.error and not may_fail)
            or outcome.hung
            or outcome.signal not in (0, signal.SIGKILL)
        ):
            raise Broken(f"{' '.join(arguments)}: {outcome}")
        return outcome

    def fingerprint(self, out: Path) -> Any:
        """Of what is in `out`: of a model, or of each image by its name."""
        outcome = self.nursery.call("fingerprint", [str(out), READER[self.name]])
        if outcome.error or outcome.signal:
            raise Broken(f"{out} cannot be read: {outcome}")
        return outcome.value

    def holds(self, out: Path) -> bool:
        """Whether all that is in `out` is as the whole run has it."""
        return set(self.fingerprint(out).items()) <= set(self.wanted.items())


def at_some_time(scene: Scene, out: Path, source: random.Random) -> bool:
    """Run the command and kill it at any time; whether it was, before its end."""
    limits = Limits(kill_after=source.uniform(0.0, 0.9 * scene.seconds))
    return scene.run(scene.name, out, limits).signal != 0


def at_some_change(scene: Scene, out: Path, source: random.Random) -> bool:
    """Run the command and kill it right before a change to a file: whether it was."""
    limits = Limits(kill_before=source.randrange(scene.changes), below=str(out))
    return scene.run(scene.name, out, limits).signal != 0


def killed(scene: Scene, out: Path, source: random.Random) -> int:
    """Run the command and kill it once or more; how often."""
    kill = source.choice((at_some_time, at_some_change))
    if not kill(scene, out, source):  # it was done before
        shutil.rmtree(out)
        if not at_some_change(scene, out, source):
            raise Broken("it made fewer changes to files than a whole run does")
    kills = 1
    while True:
        if not scene.holds(out):
            raise Broken("it left something else than a whole run does")
        kill = source.choice((at_some_time, at_some_change))
        if source.random() < 0.7 or not kill(scene, out, source):
            return kills
        kills += 1


def attack(name: str, seed: int, numbers: range) -> Counter[str]:
    """Each number is a run of the command that is killed once or more, and goes on."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place, Nursery("victim") as nursery:
        scene = Scene(nursery, Path(place), name)
        for number, source in draw(seed, numbers):
            out = scene.folder / str(number)
            try:
                kills = killed(scene, out, source)
                scene.run(name, out)
                if scene.fingerprint(out) != scene.wanted:
                    raise Broken("it went on to something else")
                left = nursery.call("leftovers", [str(out)]).value
                if left:
                    raise Broken(f"it leaves {left}")
            except Broken as error:
                raise Broken(f"run {number}: {error}") from error
            shutil.rmtree(out)
            outcomes[f"killed {'once' if kills == 1 else 'more often'}, to the same bits"] += 1
    return outcomes


ATTACKS = tuple(
    Attack(
        f"kills-{name}",
        f"`fastguide {name}` that was killed leaves nothing or something whole, and goes on to the "
        "same bits",
        partial(attack, name),
        count=100,
        bounded=1 if name in ("train", "sample") else 0,
        seconds=900.0,
    )
    for name in COMMANDS
)
