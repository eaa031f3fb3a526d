"""Whole runs as CUDA graphs: the function that runs eagerly is captured, and replayed from then on.

A graph reads and writes fixed addresses. So each capture has inputs of its own, which a call is
copied into; conditions, seeds, noise, weights and NAG's scale are among them, and another value of
any needs no capture. Another pattern, shape, dtype or number of samples does.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Run = Callable[[Any], Any]  # a pytree of tensors -> a pytree of tensors


class Recorder(Protocol):
    """What a device does: `warm` runs a call so that nothing is left to set up, `record` captures
    one, and gives what replays it and the outputs that a replay writes.
    """

    def warm(self, call: Callable[[], Any]) -> None: ...
    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]: ...
    def release(self) -> None: ...


class CudaRecorder:
    """CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def warm(self, call: Callable[[], Any]) -> None:
        """Run the call on a side stream, where lazy initialisations and autotuning may happen."""
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                call()
            torch.cuda.current_stream().wait_stream(side)

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Capture the call."""
        with torch.cuda.device(self.device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                outputs = call()
        return graph.replay, outputs

    def release(self) -> None:
        """Give back the memory of graphs that are gone."""
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Captured:
    """One capture: the leaves that it reads, what replays it, and what it writes."""

    inputs: list[Any]
    replay: Callable[[], None]
    outputs: Any


class Graphs:
    """Captures of one function, the `limit` last used.

    Attributes:
        captures, replays: how many there have been.
    """

    def __init__(self, recorder: Recorder, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}, but it should be 1 or more")
        self.recorder, self.limit = recorder, limit
        self.kept: OrderedDict[Hashable, Captured] = OrderedDict()
        self.lock = threading.Lock()
        self.captures = self.replays = 0

    def __call__(self, key: Hashable, inputs: Any, run: Run) -> Any:
        """`run(inputs)`, from a graph: copies of its outputs.

        Args:
            key: what else the function depends on.
            inputs: a pytree of tensors, on the device.

        Raises:
            torch.OutOfMemoryError: the capture does not fit; nothing of it is left.
        """
        leaves, form = tree_flatten(inputs)
        whole = (key, str(form), tuple(_form(leaf) for leaf in leaves))
        with self.lock:
            found = self.kept.get(whole)
            if found is None:
                found = self._capture(leaves, form, run)
                self.kept[whole] = found
                while len(self.kept) > self.limit:
                    self.kept.popitem(last=False)
            else:
                self.kept.move_to_end(whole)
                for fixed, leaf in zip(found.inputs, leaves, strict=True):
                    if isinstance(leaf, Tensor):
                        fixed.copy_(leaf)
            found.replay()
            self.replays += 1
            outputs, shape = tree_flatten(found.outputs)
            return tree_unflatten([output.clone() for output in outputs], shape)

    def _capture(self, leaves: list[Any], form: Any, run: Run) -> Captured:
        # contiguous copies: what was given may be a view, or expanded
        fixed = [leaf.contiguous().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def call() -> Any:
            return run(tree_unflatten(fixed, form))

        try:
            self.recorder.warm(call)
            replay, outputs = self.recorder.record(call)
        except torch.OutOfMemoryError:
            self.recorder.release()
            raise
        self.captures += 1
        return Captured(fixed, replay, outputs)


def _form(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.dtype, leaf.device)
    return leaf
