"""Hashes of settings that are looked up at every step."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def hash_once(cls: Class) -> Class:
    """A frozen dataclass whose objects work out their hash once; a copy in another process, where
    strings hash otherwise, again.
    """
    worked_out: Any = cls.__hash__
    names = {field.name for field in fields(cls)}

    def hashed(self: Any) -> int:
        found = self.__dict__.get("_hash")
        if found is None:
            found = self.__dict__["_hash"] = worked_out(self)
        return found

    def state(self: Any) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name in names}

    changed: Any = cls
    changed.__hash__, changed.__getstate__ = hashed, state
    return cls
