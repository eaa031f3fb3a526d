"""k-diffusion's `sampling` module by itself: its package imports torchvision, which its samplers do
not need.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest


def load() -> types.ModuleType:
    """The module, or the test is skipped."""
    for needed in ("scipy", "torchdiffeq", "torchsde", "tqdm"):
        pytest.importorskip(needed)
    found = importlib.util.find_spec("k_diffusion")
    if found is None or found.origin is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion_alone")
    package.__path__ = [str(Path(found.origin).parent)]
    utils = types.ModuleType("k_diffusion_alone.utils")
    utils.append_dims = lambda x, dims: x.reshape(*x.shape, *[1] * (dims - x.ndim))
    package.utils = utils
    sys.modules |= {package.__name__: package, utils.__name__: utils}
    return importlib.import_module("k_diffusion_alone.sampling")
