"""Runs a sampler's plans, eagerly or from graphs, and counts what it did."""

from __future__ import annotations

import copy
import time
from collections.abc import Hashable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from fastguide.common.locks import ProcessLock
from fastguide.common.log import log, logging_on
from fastguide.engine.captured import Way, run_captured
from fastguide.engine.graph import Graphs
from fastguide.engine.known import Known, both, holding
from fastguide.engine.latch import ending
from fastguide.engine.measure import WHOLE_NODES, count_nodes
from fastguide.engine.memory import Memory, estimate, what_fits
from fastguide.engine.passes import Conditions
from fastguide.engine.plan import Plan
from fastguide.engine.program import RowMode
from fastguide.engine.recorder import CudaRecorder
from fastguide.engine.run import Inputs, run
from fastguide.engine.static import padding
from fastguide.engine.stats import Stats
from fastguide.engine.structure import structure
from fastguide.engine.watch import Callback, Watch, watching
from fastguide.sampling.planning import Planned

Found = tuple[Tensor, Tensor, Tensor]  # what `fastguide.engine.run.run` returns


class Runner:
    """Knows how to run: rows batched or not, eagerly or captured. Samplers that were `replaced`
    share all of it but the counts.

    Args:
        rows, graph, max_captures, fallback: as `fastguide.Sampler` takes them.

    Attributes:
        graphs: the captured runs; None where all runs are eager.
        ways: what was chosen for a plan's structure, where `graph` is True.
        sizes: of the batches that `warm_up` saw, up to which captured ones are filled.
        measured: how the rows of a batch are fastest, by its size.
    """

    def __init__(
        self,
        device: torch.device,
        rows: RowMode | None = None,
        graph: bool | Way = False,
        max_captures: int = 8,
        fallback: bool = False,
    ) -> None:
        self.device, self.rows, self.graph, self.fallback = device, rows, graph, fallback
        self.graphs = Graphs(CudaRecorder(device), max_captures) if graph else None
        self.ways: dict[Hashable, Way] = {}
        self.sizes: set[int] = set()
        self.measured: dict[int, RowMode] = {}
        self._lock, self._counts = ProcessLock(), Stats()

    def uncounted(self) -> Runner:
        """One that shares all but the counts."""
        other = copy.copy(self)
        other._lock, other._counts = ProcessLock(), Stats()
        return other

    @property
    def captures(self) -> int:
        """How many CUDA graphs were captured, by all that share them."""
        return 0 if self.graphs is None else self.graphs.captures

    def stats(self) -> Stats:
        """The counts so far."""
        with self._lock:
            counts = replace(self._counts)
        if self.graphs is not None:
            counts.captures, counts.replays = self.graphs.captures, self.graphs.replays
        return counts

    def mode(self, batch: int, conditions: Conditions) -> RowMode:
        """How the rows of such a batch run: alone where their conditions differ in shape."""
        if not conditions.joinable:
            return "sequential"
        return self.rows or self.measured.get(batch, "batched")

    def run(
        self,
        planned: Planned,
        inputs: Inputs,
        plan: Plan | None = None,
        callback: Callback | None = None,
        known: Known | None = None,
        look: Watch | None = None,
    ) -> Found:
        """A run, on whatever thread, on the sampler's device.

        Args:
            plan: `planned.plan`, or it with a preview or with the weights of requests.
            look: looks on, after the others.
        """
        plan = planned.plan if plan is None else plan
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            watch = None if callback is None else watching(callback, plan, len(inputs.seeds))
            if known is not None:
                watch = both(holding(known, plan, inputs.seeds), watch)
            return self._told(planned, plan, inputs, both(watch, look))

    def memory(self, planned: Planned, one: Conditions, batch: int) -> Memory:
        """An estimate for `batch` samples, from the conditions of one."""
        mode = self.mode(batch, one)  # another stream holds what the same one would
        passes = planned.passes["batched" if mode == "beside" else mode]
        graph, nets = self.graphs is not None, planned.nets.values()
        return estimate(planned.plan, passes, one, batch, nets, *planned.setup.settings, graph)

    def way(self, planned: Planned, plan: Plan, inputs: Inputs, watch: Watch | None) -> Way | None:
        """How the run is captured; None where it is not. Where that is to be chosen: step by step
        where guidance may drop a branch on the way, and where the whole were too large.
        """
        if self.graphs is None:
            return None
        settings = planned.setup.settings
        if isinstance(self.graph, str):
            way: Way | None = self.graph
        else:
            form = structure(plan, settings.dtype)
            way = self.ways.get(form)
            if way is None:
                passes = planned.passes[self.mode(len(inputs.seeds), inputs.conditions)]
                known = (plan, passes, inputs.conditions, inputs.seeds, *settings)
                large = any(map(ending, plan.rows)) or count_nodes(*known) > WHOLE_NODES
                way = self.ways[form] = "steps" if large else "whole"
        return None if watch is not None and way == "whole" else way

    def _told(self, planned: Planned, plan: Plan, inputs: Inputs, watch: Watch | None) -> Found:
        """A run, counted and logged."""
        began, batch = time.perf_counter(), len(inputs.seeds)
        way = self.way(planned, plan, inputs, watch)
        padded = 0 if way is None else padding(batch, self.sizes)
        mode = self.mode(batch + padded, inputs.conditions)
        passes = planned.passes[mode]
        captures = self.captures
        found = None
        if self.graphs is not None and way is not None:
            settings = (plan, passes, inputs, planned.setup.settings, planned.drawn)
            try:
                found = run_captured(self.graphs, way, *settings, padded, watch, mode)
            except torch.OutOfMemoryError as error:
                if not self.fallback:
                    message = self._what_fits(planned, inputs, batch + padded, self.graphs)
                    raise torch.OutOfMemoryError(message) from error
                way, padded = None, 0
                with self._lock:
                    self._counts.fallbacks += 1
        if found is None:
            found = run(plan, passes, inputs, *planned.setup.settings, watch)
        with self._lock:
            self._counts.add(plan, passes, batch, padded)
        if logging_on():
            new = self.captures - captures
            how = {"mode": mode, "way": way or "eager", "captures": new}
            if new:
                log("capture", batch=batch + padded, **how)
            sizes = {"evaluations": plan.evaluations, "rows": batch * plan.net_rows}
            seconds = time.perf_counter() - began
            log("run", batch=batch, padded=padded, **sizes, **how, seconds=seconds)
        return found

    def _what_fits(self, planned: Planned, inputs: Inputs, batch: int, graphs: Graphs) -> str:
        one = inputs.conditions.mapped(lambda leaf: leaf[:1])
        small, large = self.memory(planned, one, 1), self.memory(planned, one, batch)
        return what_fits(small, large, batch, graphs.recorder.free())
