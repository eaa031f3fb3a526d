"""Fixtures that several test files share; `exact` is importable from every test."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import exact
import pytest
import torch


@pytest.fixture(params=sorted(exact.PROCESSES))
def process(request):
    """Each noise process in turn."""
    return exact.PROCESSES[request.param]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
