"""Times on a device: of kernels, from replays of a graph of launches; of whole runs, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
MOST_LAUNCHES = 512  # of a graph


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Args:
        seconds: the median over the rounds.
        spread: half of what the middle half of the rounds spans, relative to the median.
        rounds: how many there were.
    """

    seconds: float
    spread: float
    rounds: int


def summary(seconds: Sequence[float]) -> Timing:
    """Median and spread of measured times."""
    middle = statistics.median(seconds)
    if len(seconds) < 2:
        return Timing(middle, 0.0, len(seconds))
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(middle, (high - low) / 2 / middle if middle else 0.0, len(seconds))


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernel_times(calls: Sequence[Call], device: torch.device, rounds: int = 9) -> list[float]:
    """Seconds of one call, for each round; see `stopwatch`."""
    watch = stopwatch(calls, device)
    return [watch() for _ in range(rounds)]


def stopwatch(
    calls: Sequence[Call], device: torch.device, target: float = 0.01
) -> Callable[[], float]:
    """What gives the seconds of one call, each time that it is asked. All `calls` do the same on
    memory of their own, one after the other, so that a cache smaller than all of it does not serve
    them.

    On a GPU they are captured as one graph, as often as takes about `target` seconds: what is timed
    is the device's work, without the host's launches.
    """
    for call in calls:  # compiles, allocates
        call()
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _captured(calls, target)

    def watch() -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) / len(calls)

    return watch


def _captured(calls: Sequence[Call], target: float) -> Callable[[], float]:
    def elapsed(run: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    once = max(elapsed(lambda: [call() for call in calls]), 1e-7)
    repeats = max(1, min(round(target / once), MOST_LAUNCHES // len(calls)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    graph.replay()
    return lambda: elapsed(graph.replay) / (repeats * len(calls))


def in_turns(
    calls: Mapping[str, Call], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call from start to finish, host and device, for each round; in every round
    each has its turn, so that a drift of the machine meets all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def sets_for(size: int, device: torch.device) -> int:
    """How many copies of `size` bytes pass the cache by: four times its size, 16 copies at most."""
    if device.type != "cuda":
        return 1
    return max(2, min(16, -(-4 * cache_bytes(device) // size)))


def cache_bytes(device: torch.device) -> int:
    """Of the GPU's last cache; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 2**26)
