"""Runs from CUDA graphs: the functions that run eagerly are captured, and replayed from then on.

A graph reads and writes fixed addresses. So each capture has inputs of its own, which a call is
copied into; all numbers of the plan, conditions, seeds and noise are among them, and another value
of any needs no capture. Another structure of the plan, shape, dtype or number of samples does.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


class Recorder(Protocol):
    """What a device does: `warm` runs a call so that nothing is left to set up, `record` captures
    one, and gives what replays it and the outputs that a replay writes; `release` gives back what
    captures that are gone held, `free` says how many bytes there are. Uses take `turns`.
    """

    def warm(self, call: Callable[[], Any]) -> None: ...
    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]: ...
    def release(self) -> None: ...
    def free(self) -> int: ...
    def turn(self) -> AbstractContextManager[None]: ...


_RECORDING = threading.Lock()  # a capture begins with a wait for the device


class CudaRecorder:
    """CUDA graphs that share one memory pool. They may, as they never run at the same time, and as
    what a replay leaves is copied before the next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        # its own, for all captures and what warms up for them: cuBLAS keeps a workspace per stream,
        # and PyTorch's stream for captures lies on the device that captured first
        self.stream = torch.cuda.Stream(device)
        self.last: torch.cuda.Event | None = None

    def warm(self, call: Callable[[], Any]) -> None:
        """Run the call on the side stream, where lazy initialisations and autotuning may happen: as
        often as what `torch.compile` made needs until it compiles no more.
        """
        with torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                until_compiled(call)
            torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Capture the call. Other threads may use the device meanwhile, but for other captures; the
        backward pass, which runs on a thread of its own, is captured too, as it takes the stream of
        the forward pass.
        """
        graph = torch.cuda.CUDAGraph()
        how: dict[str, Any] = {"pool": self.pool, "capture_error_mode": "thread_local"}
        own = torch.cuda.graph(graph, stream=self.stream, **how)
        with _RECORDING, torch.cuda.device(self.device), own:
            outputs = call()
        return graph.replay, outputs

    def release(self) -> None:
        """Give back the memory of graphs that are gone."""
        with _RECORDING, torch.cuda.device(self.device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def free(self) -> int:
        """Bytes of the device that nobody has, and those that PyTorch holds but does not use; no
        more than the process may take.
        """
        used = torch.cuda.memory_allocated(self.device)
        free, total = torch.cuda.mem_get_info(self.device)
        allowed = int(torch.cuda.get_per_process_memory_fraction(self.device) * total) - used
        return min(free + torch.cuda.memory_reserved(self.device) - used, allowed)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Callers on other streams wait for each other, on the device."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            if self.last is not None:
                stream.wait_event(self.last)
            yield
            self.last = stream.record_event(self.last)


WARMUPS = 4  # at most: a compiled network may compile anew for each batch size that it sees first


def until_compiled(call: Callable[[], Any]) -> None:
    """Run `call` once, and again while that made `torch.compile` compile something."""
    for _ in range(WARMUPS):
        before = _compilations()
        call()
        if _compilations() == before:
            return


def _compilations() -> int:
    dynamo = sys.modules.get("torch._dynamo.utils")  # loaded by whoever compiled something
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


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


def autocast_state() -> Hashable:
    """What `torch.autocast` does on this thread, which a capture holds on to."""
    return tuple(
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for device in ("cpu", "cuda")
    )


@contextmanager
def without_autocast_cache() -> Iterator[None]:
    """No weight that autocast has cast is kept: a graph would read it after it is freed."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _form(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return (tuple(leaf.shape), leaf.dtype, leaf.device)
    return leaf
