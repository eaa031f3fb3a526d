"""fastguide: guided sampling of diffusion and flow models, every method at the speed of the
hardware. Its names are those of `fastguide.public`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastguide.adapters.diffusers.guider import Guider as Guider
    from fastguide.guidance import *  # noqa: F403
    from fastguide.public import *  # noqa: F403
    from fastguide.public import __all__ as __all__
    from fastguide.solvers import *  # noqa: F403
    from fastguide.spacing import *  # noqa: F403
else:
    if find_spec("fastguide._C") is None:
        import_module("fastguide.ops.built")  # says what to do

    class _Package(ModuleType):
        """The package, whose names are imported when the first of them is asked for: the command's
        help needs none of them, and so does not wait for torch.
        """

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            if any(name == one.name for one in iter_modules(self.__path__)):
                return import_module(f"{self.__name__}.{name}")
            if name == "Guider":  # whose class is one of diffusers', which nothing else needs
                return import_module("fastguide.adapters.diffusers.guider").Guider
            public = import_module(f"{self.__name__}.public")
            found = {one: getattr(public, one) for one in public.__all__ if one != "sample"}
            self.__dict__.update(found, __all__=public.__all__)
            if name not in self.__dict__:
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            return self.__dict__[name]

        def __dir__(self) -> list[str]:
            return sorted(self.__all__)

        @property
        def sample(self) -> Any:
            """The function, not the module of this name, which the import system sets."""
            return self.__dict__.get("_sample") or import_module(f"{self.__name__}.sample").sample

        @sample.setter
        def sample(self, value: Any) -> None:
            if not isinstance(value, ModuleType):
                self.__dict__["_sample"] = value

    sys.modules[__name__].__class__ = _Package
