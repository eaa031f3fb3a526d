"""Hashes that are worked out once."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

from fastguide.common.hashing import hash_once
from fastguide.engine.pattern import Pattern
from fastguide.guidance.base import POSITIVE, Branch

asked = []


@dataclass(frozen=True)
class Part:
    name: str

    def __hash__(self):
        asked.append(self.name)
        return hash(self.name)


@hash_once
@dataclass(frozen=True)
class Whole:
    part: Part
    size: int = 1


def test_a_hash_is_worked_out_once():
    asked.clear()
    one, other = Whole(Part("a")), Whole(Part("a"))
    assert {one: 1}[other] == 1
    assert {one: 2}[other] == 2
    assert hash(one) != hash(Whole(Part("a"), 2))
    assert asked == ["a"] * 3


def test_a_copy_works_it_out_anew():
    """Strings hash otherwise in another process."""
    for one in (Whole(Part("a")), Branch("negative"), Pattern((POSITIVE, Branch("negative")))):
        hash(one)
        for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
            assert again == one
            assert "_hash" not in vars(again)
            assert hash(again) == hash(one)
