"""Training commands that are killed at any moment, and go on.

Half of the kills come at a random time, half right before a random change to a file: its creation,
its renaming. After each the folder holds no model or a whole one, and the command is run again,
with more kills, to its end. Then the model is, to the last bit, that of a run that was left alone.
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

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
}
READER = {"train": "load", "classifier": "classifier", "clip": "clip", "sims": "load"}
CHANGES = 40  # to files in a run, about


def write_images(folder: Path) -> None:
    """Twenty-four images of three classes, as IDX files."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    pixels = rng.integers(0, 256, (24, 8, 8), dtype=np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", np.arange(24) % 3)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


class Scene:
    """A folder with data and a model, and for each command what a run that is left alone makes."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery, self.folder = nursery, folder
        write_images(folder / "data")
        self.wanted: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.command("train", folder / "model")
        for name in COMMANDS:
            out = folder / f"whole-{name}"
            start = time.perf_counter()
            self.command(name, out)
            self.seconds[name] = time.perf_counter() - start
            self.wanted[name] = self.fingerprint(name, out)

    def command(self, name: str, out: Path, limits: Limits | None = None) -> Outcome:
        """Run the command; anything but its end or the kill that was asked for is an error."""
        places = {"data": self.folder / "data", "model": self.folder / "model", "out": out}
        arguments = [name, *(part.format(**places) for part in COMMANDS[name].split())]
        outcome = self.nursery.call("command", arguments, limits)
        if outcome.error or outcome.hung or outcome.signal not in (0, signal.SIGKILL):
            raise Broken(f"{' '.join(arguments)}: {outcome}")
        return outcome

    def fingerprint(self, name: str, out: Path) -> str:
        """Of the model in `out`; "" where there is none."""
        if not (out / "model.json").exists():
            return ""
        outcome = self.nursery.call("fingerprint", [str(out), READER[name]])
        if outcome.error or outcome.signal:
            raise Broken(f"{out} holds a model that cannot be read: {outcome}")
        return str(outcome.value)


def kill(scene: Scene, name: str, out: Path, source: random.Random) -> bool:
    """Run the command and kill it on the way; whether it was."""
    if source.random() < 0.5:
        limits = Limits(kill_after=source.uniform(0.0, 1.2 * scene.seconds[name]))
    else:
        limits = Limits(kill_before=source.randrange(CHANGES), below=str(out))
    return scene.command(name, out, limits).signal != 0


def attack(seed: int, numbers: range) -> Counter[str]:
    """Each number is one kill of one command and, with even chance, one more of what goes on."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place, Nursery("victim") as nursery:
        scene = Scene(nursery, Path(place))
        for number, source in draw(seed, numbers):
            name = list(COMMANDS)[number % len(COMMANDS)]
            out = scene.folder / str(number)
            killed = 0
            while killed == 0 or source.random() < 0.5:
                if not kill(scene, name, out, source):
                    break
                killed += 1
                if scene.fingerprint(name, out) not in ("", scene.wanted[name]):
                    raise Broken(f"kill {number} of {name}: another model than that of a whole run")
            scene.command(name, out)
            if scene.fingerprint(name, out) != scene.wanted[name]:
                raise Broken(f"kill {number} of {name}: it went on to other numbers")
            left = nursery.call("leftovers", [str(out)]).value
            if left:
                raise Broken(f"kill {number} of {name}: it leaves {left}")
            shutil.rmtree(out)
            outcomes[f"of `{name}` went on to the same bits" if killed else "ended before"] += 1
    return outcomes


ATTACKS = (
    Attack(
        "kills",
        "A command that was killed leaves no model or a whole one, and goes on to the same bits",
        attack,
        count=400,
        bounded=4,
        seconds=1500.0,
    ),
)
