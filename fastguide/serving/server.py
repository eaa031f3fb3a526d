"""A server: requests with settings of their own that share batches, evaluation by evaluation."""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fastguide.common.checks import check_int, check_number, shown
from fastguide.common.locks import ProcessLock
from fastguide.common.options import Configured
from fastguide.engine.graph import Graphs
from fastguide.engine.known import Measurement, holding
from fastguide.engine.recorder import CudaRecorder
from fastguide.engine.stacked import Stackable
from fastguide.engine.watch import Callback
from fastguide.guidance.base import Guidance, Other
from fastguide.model import Model
from fastguide.ops.noise import check_seed
from fastguide.process import Level
from fastguide.sample import Sampler
from fastguide.sampling.checks import check_graph
from fastguide.sampling.course import Clamp, Course
from fastguide.sampling.inputs import bind_all
from fastguide.sampling.known import as_init, as_known
from fastguide.sampling.planning import Planned, make_ready
from fastguide.sampling.rollout import check_rollout
from fastguide.sampling.setup import Setup, set_up
from fastguide.serving.batches import Batches
from fastguide.serving.live import Live, Places
from fastguide.serving.loop import Counts, Loop
from fastguide.solvers import Solver
from fastguide.spacing import Levels
from fastguide.staging.contract import embed_times

_PLANS = 256  # that are kept: those of settings that come again


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A course, planned: its rows, and what networks have for their times."""

    planned: Planned
    rows: Stackable
    times: dict[Other | None, Tensor]


class Server:
    """Samples for many callers. A batch is one evaluation of whichever requests can share it, each
    at its own place in its own run; requests join and leave between evaluations.

    A request's sample is what `fastguide.sample` gives for its settings, to rounding. A failing
    network fails those whose rows make it fail, found by running a failed batch one by one.

    Args:
        model: what is sampled; or a `Sampler`, whose settings are what requests have where they
            name none.
        max_batch: the most samples of an evaluation.
        max_live: the most requests that have begun and are not done; by default four batches.
        max_queue: the most that wait beside these; None for no limit.
        patience: how many batches may go past a request that has begun, before it goes first. None
            is passed over more than `patience + max_live - 1` times in a row.
        batch_invariant: evaluate every batch with `max_batch` samples, copies where there are
            fewer, so that a sample's bits depend on its own request alone.
        graph: capture evaluations as CUDA graphs, by kind and size.
        max_captures: the captures that are kept.
        dtype, shape, device: as in `Sampler`, for a model.

    Raises:
        ValueError, TypeError: an argument that is not as above, named with its value.
    """

    def __init__(
        self,
        model: Model | Sampler,
        *,
        max_batch: int = 16,
        max_live: int | None = None,
        max_queue: int | None = None,
        patience: int = 32,
        batch_invariant: bool = False,
        graph: bool = False,
        max_captures: int = 64,
        dtype: torch.dtype | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_int("max_batch", max_batch)
        check_int("patience", patience)
        check_int("max_captures", max_captures)
        if max_live is not None:
            check_int("max_live", max_live)
        if max_queue is not None:
            check_int("max_queue", max_queue)
        if isinstance(model, Sampler):
            if (dtype, shape, device) != (None, None, None):
                raise ValueError("dtype, shape and device are those of the sampler that is given")
            self._setup: Setup = model._planned.setup
            if self._setup.compiled is not None:
                raise ValueError(
                    "model is a Sampler with compile, but a server runs the network as it is: "
                    "compile its blocks instead"
                )
            self._course = model._planned.course
        else:
            self._setup = set_up(model, shape, device, dtype)
            self._course = Course(None, None, 25, None, None, None)
        check_graph(graph, max_captures, False, self._setup.device)
        self.max_batch, self.max_queue, self.patience = max_batch, max_queue, patience
        self.max_live = max_live or 4 * max_batch
        self.batch_invariant, self.graph, self.max_captures = batch_invariant, graph, max_captures
        self.device, self.model = self._setup.device, self._setup.model
        self.closed = False
        self._nets: dict[Other | None, Any] = {None: self._setup.net}
        self._prepared: OrderedDict[Course, _Prepared] = OrderedDict()
        self._loops: dict[int, Loop] = {}
        self._lock = ProcessLock()

    def submit(
        self,
        cond: Any = None,
        seed: int = 0,
        guidance: Guidance | None = None,
        negative: Any = None,
        *,
        solver: Solver | str | None = None,
        steps: int | None = None,
        spacing: Configured[Levels] | str | None = None,
        levels: Levels | None = None,
        clamp: Clamp = None,
        strength: float | Level | None = None,
        init: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        measurement: Measurement | None = None,
        callback: Callback | None = None,
        previews: int | Collection[int] | Literal["all"] = "all",
        rollout: bool = False,
        priority: float = 0.0,
        timeout: float | None = None,
    ) -> Future[Any]:
        """Ask for one sample: a future of fp32 `[*shape]`. It may be cancelled until it is done.

        Args:
            cond, negative: as in a call of `Sampler`, for ONE sample: an int, or tensors of batch
                1.
            seed: one int in [0, 2^63).
            guidance, solver, steps, spacing, levels, clamp, strength: as in `Sampler`; None for the
                server's own.
            init, known, mask, measurement: as in a call of `Sampler`, `[*shape]` or `[1, *shape]`.
            callback: shown `Progress` on the server's thread, with tensors `[*shape]` of its own;
                `return fastguide.STOP` ends the request with the denoised image so far.
            previews: after which evaluations the callback is called: their numbers 1, 2, ...; so
                many of them, evenly spaced; or all.
            rollout: the future is of a `fastguide.Rollout` of one sample: the trajectory, and the
                log-probability of each step that draws noise.
            priority: larger goes first, before age.
            timeout: seconds until it fails with a TimeoutError where it is not done, even if the
                network hangs; None for no limit.

        Raises:
            ValueError, TypeError: an argument that is not as above, named with its value.
            fastguide.serving.loop.Full: `max_queue` requests wait already.
            RuntimeError: the server was closed, or something such as SystemExit ended its thread.
        """
        if self.closed:
            raise RuntimeError("the server was closed, it takes no more requests")
        check_seed(seed)
        check_number("priority", priority)
        if timeout is not None:
            check_number("timeout", timeout, 0.0)
        if callback is not None and not callable(callback):
            raise TypeError(f"callback is {shown(callback)}, but it should be callable")
        given = {
            "guidance": guidance,
            "solver": solver,
            "steps": steps,
            "spacing": spacing,
            "levels": levels,
            "clamp": clamp,
            "strength": strength,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        with torch.inference_mode(False), torch.no_grad():
            ready = self._ready(self._course.replaced(changes))
            planned, plan = ready.planned, ready.rows.plan
            conditions = bind_all(planned, cond, negative, 1)
            start = as_init(planned, init, 1)
            part = as_known(planned, known, mask, measurement, 1)
            held = None
            if rollout:
                check_rollout(plan, part)
            if part is not None:
                seeds = torch.tensor([seed], dtype=torch.int64, device=self.device)
                held = holding(part, plan, seeds)
        trajectory = None
        if rollout:
            size = (len(plan.rows), *self._setup.settings.shape)
            trajectory = torch.zeros(size, dtype=torch.float32, device=self.device)
        one = Live(
            seed=int(seed),
            plan=ready.rows,
            conditions=replace(conditions, drawn=None),
            times=ready.times,
            init=None if start is None else start[0],
            held=held,
            watched=_watched(previews, plan.evaluations) if callback is not None else (),
            callback=callback,
            rollout=trajectory,
            priority=priority,
            timeout=timeout,
        )
        self._loop().put(one)
        return one.future

    def close(self, timeout: float | None = None) -> None:
        """Finish what was taken, and take no more.

        Args:
            timeout: seconds after which what is not done fails with a TimeoutError; None for no
                limit. From a callback nothing is waited for.
        """
        if timeout is not None:
            check_number("timeout", timeout, 0.0)
        self.closed = True
        loop = self._loops.get(os.getpid())
        if loop is not None:
            loop.close(timeout)

    def stats(self) -> Counts:
        """What the server has done so far."""
        loop = self._loops.get(os.getpid())
        return Counts() if loop is None else loop.stats()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ready(self, course: Course) -> _Prepared:
        """The course planned; from those that are known where it is."""
        try:
            with self._lock:
                found = self._prepared.get(course)
                if found is not None:
                    self._prepared.move_to_end(course)
                    return found
            keep = True
        except TypeError:  # it holds what has no hash, such as a tensor
            keep = False
        with self._lock:
            nets = dict(self._nets)
        planned = make_ready(self._setup, course, known=nets, lay_out=False)
        times = {}
        for net, network in planned.nets.items():
            embed = embed_times(network)
            if embed is not None:
                times[net] = embed(planned.plan.times)
        found = _Prepared(planned, Stackable(planned.plan), times)
        with self._lock:
            for net, network in planned.nets.items():
                self._nets.setdefault(net, network)
            if keep:
                self._prepared[course] = found
                while len(self._prepared) > _PLANS:
                    self._prepared.popitem(last=False)
        return found

    def _loop(self) -> Loop:
        """That of this process: a forked child has none of its parent's threads."""
        with self._lock:
            if os.getpid() not in self._loops:
                self._loops[os.getpid()] = loop = self._made()
                # the thread refers to nothing here, so that it ends with the last reference
                weakref.finalize(self, partial(loop.inbox.put, None)).atexit = False
            return self._loops[os.getpid()]

    def _made(self) -> Loop:
        places = Places(self.max_live, self._setup.settings.shape, self.device)
        fill = self.max_batch if self.batch_invariant else None
        graphs = Graphs(CudaRecorder(self.device), self.max_captures) if self.graph else None
        batches = Batches(self._setup, places, self._nets, fill, graphs)
        settings = (self.max_batch, self.patience, self.max_queue, self.batch_invariant)
        return Loop(batches, places, *settings)


def _watched(previews: int | Collection[int] | Literal["all"], count: int) -> Collection[int]:
    """The evaluations, 1 ... `count`, that are shown."""
    if previews == "all":
        return range(1, count + 1)
    if isinstance(previews, int) and not isinstance(previews, bool):
        if previews < 0:
            raise ValueError(f"previews is {previews}, but it should be 0 or more")
        shown_ones = min(previews, count)
        return {max(1, round((i + 1) * count / (shown_ones + 1))) for i in range(shown_ones)}
    if isinstance(previews, str) or not isinstance(previews, Collection):
        raise TypeError(
            f"previews is {shown(previews)}, but it should be a number of them, evaluations, or "
            "'all'"
        )
    for one in previews:
        check_int("previews", one)
        if one > count:
            raise ValueError(f"previews has {one}, but the request has {count} evaluations")
    return frozenset(previews)
