"""Fixtures that several test files share; every test can import from `helpers` and the rooms."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(room) for room in sorted(HERE.iterdir()) if room.is_dir()]

import exact  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(params=sorted(exact.PROCESSES))
def process(request):
    """Each noise process in turn."""
    return exact.PROCESSES[request.param]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
