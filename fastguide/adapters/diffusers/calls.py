"""A pipeline's calls of its network, most of which say what the last one said."""

from __future__ import annotations

from typing import Any

from fastguide.adapters.diffusers.network import Call


class Gather:
    """`net.gather` of a pipeline's calls, worked out anew where they say something new."""

    def __init__(self, net: Any) -> None:
        self.net = net
        self.own = {net.arguments[0], "timestep"}
        self.forget()

    def forget(self) -> None:
        """Hold nothing of the last calls."""
        self._known: list[tuple[dict[str, Any], Call]] = []

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """What the call means."""
        if len(args) > 2:  # conditions without a name
            return self.net.gather(args, kwargs)
        for given, call in self._known:
            if self._repeats(kwargs, given):
                x = args[0] if args else kwargs[self.net.arguments[0]]
                return Call(x, call.fixed, call.varying)
        call = self.net.gather(args, kwargs)
        if not call.varying:
            told = {name: _as_now(value) for name, value in kwargs.items()}
            self._known = [*self._known[-1:], (told, call)]  # positive, negative
        return call

    def _repeats(self, kwargs: dict[str, Any], given: dict[str, Any]) -> bool:
        if len(kwargs) != len(given):
            return False
        for name, value in kwargs.items():
            old = given.get(name, self)
            if value is not old and name not in self.own and not _same_leaves(value, old):
                return False
        return True


def _as_now(value: Any) -> Any:
    """What a dict or a list holds now: pipelines write others into the same one."""
    if isinstance(value, dict):
        return dict(value)
    return tuple(value) if isinstance(value, list) else value


def _same_leaves(one: Any, other: Any) -> bool:
    """Whether a dict or list holds the same objects as one did."""
    if isinstance(one, list) and isinstance(other, tuple):
        return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
    if not isinstance(one, dict) or not isinstance(other, dict) or len(one) != len(other):
        return False
    return all(other.get(name, other) is value for name, value in one.items())
