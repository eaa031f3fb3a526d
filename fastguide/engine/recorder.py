"""What a device does for captures: warm up, record a call, replay it, tell its free memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch


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
