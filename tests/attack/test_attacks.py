"""The bounded part of every attack, and that the harness notices a broken promise."""

from collections import Counter

import pytest
import run as runner
from attack import Attack, Broken, attacks, draw


@pytest.mark.parametrize("attack", [a for a in attacks() if a.bounded], ids=lambda a: a.name)
def test_the_bounded_part_of(attack):
    outcomes = attack.run(0, range(attack.bounded))
    assert sum(outcomes.values()) == attack.bounded, outcomes


def test_names_are_unique():
    names = [attack.name for attack in attacks()]
    assert len(set(names)) == len(names)


def test_an_input_is_the_same_alone():
    among = {number: source.random() for number, source in draw(3, range(10))}
    alone = {number: source.random() for number, source in draw(3, range(7, 8))}
    assert alone == {7: among[7]}
    assert among[7] != among[8]


def breaks(seed, numbers):
    for number, _ in draw(seed, numbers):
        if number == 2:
            raise Broken("input 2 does not hold")
    return Counter(held=len(numbers))


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit('input 2 does not hold')", "exit code 1: input 2 does not hold"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
        ("import time; time.sleep(60)", "it hangs"),
    ],
)
def test_a_broken_attack_is_reported(tmp_path, monkeypatch, code, why):
    script = tmp_path / "script.py"
    script.write_text(code)
    monkeypatch.setattr(runner, "__file__", str(script))
    row = runner.supervise(Attack("x", "holds", breaks, 3, 3, seconds=2.0), 0)
    assert row["broken"].startswith(why)
    assert "BROKEN" in runner.table([row])
