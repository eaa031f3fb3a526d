"""Every action of `pipeline_actions` on pipelines of five families, before and after `guide`: the
original's own result, or an error that says why.
"""

from __future__ import annotations

import pytest

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

from pipeline_actions import ACTIONS, FAMILIES, outcome  # noqa: E402


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("action", ACTIONS)
def test_action(action, family):
    found = outcome(family, action)
    if found not in ("same", "absent", "fails"):
        assert action == "`to(dtype)`"
        assert "torch.float64, but it should be fp32, bf16 or fp16" in found
