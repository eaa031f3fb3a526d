"""Loads a build of the ops other than the installed one, of scripts/other_build.sh.

`python tests/helpers/built.py build/clang/_C.so clang ARGUMENTS...` runs pytest on it, after it has
looked that its compiler is the one that the second argument names.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def load(path: str) -> ModuleType:
    """Make the library at `path` `fastguide._C` of this process, before anything imports that."""
    assert "fastguide" not in sys.modules
    specification = importlib.util.spec_from_file_location("fastguide._C", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    sys.modules["fastguide._C"] = module
    return module


def main() -> int:
    """See the module."""
    import pytest
    import torch  # noqa: F401 (whose libraries the build needs)

    path, compiler, *arguments = sys.argv[1:]
    module = load(path)
    info = module.build_info()
    print(f"{path}: {info}")
    if compiler not in info["compiler"].lower():
        raise SystemExit(f"{path} was built with {info['compiler']}, not with {compiler}")
    code = pytest.main(arguments)
    used = sys.modules["fastguide._C"]
    if used is not module:
        raise SystemExit(f"the tests ran on {used.__file__}, not on {path}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
