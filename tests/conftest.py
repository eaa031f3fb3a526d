"""Fixtures that several test files share; every test can import from `helpers` and the rooms."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(room) for room in sorted(HERE.iterdir()) if room.is_dir()]

import exact  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also what is marked `full`")


def pytest_collection_modifyitems(config, items):
    """Without --full, what is marked `full` is left out: the rest of a product of arguments, of
    which others cover each pair, and what another command shows too."""
    if config.getoption("full"):
        return
    left = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture(params=sorted(exact.PROCESSES))
def process(request):
    """Each noise process in turn."""
    return exact.PROCESSES[request.param]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
