"""What runs of one guided pipeline share: stages, programs and plans, as long as the network's
modules are the same.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fastguide.adapters.diffusers.look import structure
from fastguide.adapters.diffusers.network import Adapted
from fastguide.adapters.diffusers.networks import made, why_not_staged
from fastguide.adapters.diffusers.whole import Whole
from fastguide.engine.compiled import Compiled
from fastguide.engine.passes import Passes
from fastguide.engine.pattern import Pattern

KEPT_NETWORKS = 2  # of the same network, with and without what was put on it
KEPT_PLANS = 8  # of other numbers of steps, sizes, strengths or scales


class Entry:
    """What is made from one network as it is.

    Args:
        compiled: options of `torch.compile`, or None.
    """

    def __init__(
        self, net: Adapted | Whole, made_from: tuple[Any, ...], compiled: Mapping[str, Any] | None
    ) -> None:
        self.net, self.made_from = net, made_from
        self.passes: dict[Pattern, Passes] = {}
        self.plans: dict[Any, Any] = {}
        self.compiled = None if compiled is None else Compiled(compiled)

    @property
    def of_run(self) -> tuple[Adapted | Whole, dict[Pattern, Passes]]:
        """The network for one run, which may note in it how a call's latents lie; and programs."""
        if isinstance(self.net, Whole):  # its programs hold it
            return self.net.of_run(), {}
        return copy.copy(self.net), self.passes

    def plan(self, key: Any, make: Callable[[], Any]) -> Any:
        """The plan of this key."""
        found = self.plans.get(key)
        if found is None:
            found = self.plans[key] = make()
            for old in list(self.plans)[:-KEPT_PLANS]:
                self.plans.pop(old, None)
        return found


class Cache:
    """The entries of one guided pipeline; several threads may ask."""

    def __init__(self, compiled: Mapping[str, Any] | None = None) -> None:
        self.compiled = compiled
        self._lock = threading.Lock()
        self._entries: list[Entry] = []

    def entry(self, net: nn.Module, time_scale: float, why_whole: str | None = None) -> Entry:
        """What is made from `net` as it is now; as one where there is a reason `why_whole`."""
        why = why_not_staged(net, why_whole)
        made_from = (net, time_scale, why, *structure(net))
        with self._lock:
            self._entries = [one for one in self._entries if one.made_from[0] is net]
            for one in self._entries:
                if one.made_from == made_from:
                    return one
            found = Entry(made(net, time_scale, why), made_from, self.compiled)
            self._entries = [*self._entries[-KEPT_NETWORKS + 1 :], found]
            return found

    def forget(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._entries = []
