"""Every action of `pipeline_actions` on pipelines of five families, before and after `guide`: the
original's own result, or an error that says why, as the table of docs/diffusers.md has it.
"""

from __future__ import annotations

import pytest

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

from pipeline_actions import ACTIONS, FAMILIES, Missing, outcome  # noqa: E402
from pipeline_table import cell, read  # noqa: E402

TABLE = read()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("action", ACTIONS)
def test_action(action, family):
    try:
        found = outcome(family, action)
    except Missing as package:
        pytest.skip(f"{package} is not installed")
    assert cell(found) == TABLE.get((action, family), cell(found)), found
    if cell(found) == "error":
        assert action == "`to(dtype)`"
        assert "torch.float64, but it should be fp32, bf16 or fp16" in found


def test_the_table_has_no_other_actions():
    assert {action for action, _ in TABLE} <= set(ACTIONS)
