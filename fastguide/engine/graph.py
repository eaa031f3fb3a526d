"""Runs from CUDA graphs: the functions that run eagerly are captured, and replayed from then on.

A graph reads and writes fixed addresses. So each capture has inputs of its own, which a call is
copied into; all numbers of the plan, conditions, seeds and noise are among them, and another value
of any needs no capture. Another structure of the plan, shape, dtype or number of samples does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fastguide.engine.recorder import Recorder, autocast_state, without_autocast_cache


@dataclass(frozen=True)
class Work:
    """What is captured: `parts`, and `drive(play, watch)`, which plays them by name, in order, and
    returns the outputs, tensors at fixed addresses. `ready` comes before a part's capture.
    """

    parts: Mapping[Any, Callable[[], Any]]
    drive: Callable[..., Any]
    ready: Callable[[Any], None] = lambda _: None


Make = Callable[[Any], Work]  # of a pytree of tensors at fixed addresses


def whole(call: Callable[[], Any]) -> Work:
    """A function that is captured in one piece."""
    return Work({"run": call}, lambda play, watch: play("run"))


@dataclass(frozen=True)
class Captured:
    """The leaves that graphs read, the graphs, and what they were made from, which keeps alive what
    else they read.
    """

    inputs: list[Any]
    graphs: Mapping[Any, tuple[Callable[[], None], Any]]
    work: Work


class Graphs:
    """Captured runs, the `limit` last used.

    Attributes:
        captures, replays: how many graphs there have been, and how often one was launched.
    """

    def __init__(self, recorder: Recorder, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}, but it should be 1 or more")
        self.recorder, self.limit = recorder, limit
        self.kept: OrderedDict[Hashable, Captured] = OrderedDict()
        self.lock = threading.Lock()
        self.user: int | None = None  # the thread whose turn it is
        self.captures = self.replays = 0

    def __call__(self, key: Hashable, inputs: Any, make: Make, watch: Any = None) -> Any:
        """What `make(inputs)` gives when it is driven, from graphs: copies of its outputs.

        Args:
            key: what else the function depends on.
            inputs: a pytree of tensors, on the device.
            watch: is handed to `Work.drive`.

        Raises:
            torch.OutOfMemoryError: a capture does not fit; nothing of it is left.
            RuntimeError: called from within a call of the same thread.
        """
        if self.user == threading.get_ident():
            raise RuntimeError("a callback called the sampler whose run it watches, from its graph")
        leaves, form = tree_flatten(inputs)
        known = (key, autocast_state(), str(form), tuple(_form(leaf) for leaf in leaves))
        with self.lock, self.recorder.turn():
            self.user = threading.get_ident()
            try:
                return self._run(known, leaves, form, make, watch)
            finally:
                self.user = None

    def _run(self, key: Hashable, leaves: list[Any], form: Any, make: Make, watch: Any) -> Any:
        found = self.kept.get(key)
        if found is None:
            found = self.kept[key] = self._capture(leaves, form, make)
            while len(self.kept) > self.limit:
                self.kept.popitem(last=False)
        else:
            self.kept.move_to_end(key)
            for fixed, leaf in zip(found.inputs, leaves, strict=True):
                if isinstance(leaf, Tensor):
                    fixed.copy_(leaf)
        graphs = found.graphs

        def play(name: Any) -> Any:
            replay, outputs = graphs[name]
            replay()
            self.replays += 1
            return outputs

        outputs, shape = tree_flatten(found.work.drive(play, watch))
        return tree_unflatten([output.clone() for output in outputs], shape)

    def _capture(self, leaves: list[Any], form: Any, make: Make) -> Captured:
        try:
            found = self._record(leaves, form, make)
        except Exception as error:
            memory = _out_of_memory(error)
            if memory is None:
                raise
            error.__traceback__ = memory.__traceback__ = None  # their frames hold the capture
            self.recorder.release()
            raise memory from None
        self.captures += len(found.graphs)
        return found

    def _record(self, leaves: list[Any], form: Any, make: Make) -> Captured:
        # contiguous copies: what was given may be a view, or expanded
        fixed = [leaf.contiguous().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        work = make(tree_unflatten(fixed, form))

        def rehearse() -> None:
            for name, part in work.parts.items():
                work.ready(name)
                part()

        graphs: dict[Any, tuple[Callable[[], None], Any]] = {}
        with without_autocast_cache():
            self.recorder.warm(rehearse)
            for name, part in work.parts.items():
                work.ready(name)
                graphs[name] = self.recorder.record(part)
        return Captured(fixed, graphs, work)


def _out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The cause where it is one; ending a capture that broke off may raise an error of its own."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error


def _form(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.dtype, leaf.device)
    return leaf
