"""The columns of the coefficient table, which three languages write down."""

import re
from pathlib import Path

import pytest
import torch

from fastguide.ops import table
from fastguide.ops.table import Column

ROOT = Path(__file__).parents[2]


def test_header_and_kernel_have_the_columns_of_the_table():
    header = (ROOT / "csrc/step_table.h").read_text()
    in_header = {name: int(value) for name, value in re.findall(r"\bk(\w+) = (\d+),", header)}
    camel = {"".join(part.title() for part in c.name.split("_")): c.value for c in Column}
    assert all(in_header.pop(e.name.title()) == e.value for e in table.Extra)
    assert in_header == camel
    assert re.search(r"kMaxSlots = (\d+);", header)[1] == str(table.MAX_SLOTS)
    kernel = (ROOT / "kernels/step.py").read_text()
    in_kernel = dict(re.findall(r"^([A-Z_]+) = tl\.constexpr\((\d+)\)", kernel, re.M))
    assert in_kernel == {c.name: str(c.value) for c in Column}


@pytest.mark.parametrize("slots", range(1, table.MAX_SLOTS + 1))
def test_a_width_tells_its_slots(slots):
    assert table.slots_of(table.width(slots)) == slots
    row = torch.arange(table.width(slots))
    assert table.matrix(row).shape == (slots, slots + 3)
    assert table.matrix(row)[0, 0] == Column.MATRIX
    with pytest.raises(ValueError, match="fits no number of slots"):
        table.slots_of(table.width(slots) + 1)
