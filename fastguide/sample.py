"""The door: `sample` for one call, `Sampler` for many with the same settings."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from fastguide import ops
from fastguide.common.log import log, logging_on
from fastguide.common.options import Configured
from fastguide.engine.captured import Settings, Way, run_captured
from fastguide.engine.count import WHOLE_NODES, nodes
from fastguide.engine.gradient import differentiable
from fastguide.engine.graph import CudaRecorder, Graphs
from fastguide.engine.latch import ending
from fastguide.engine.measure import measure_rows
from fastguide.engine.memory import Memory, estimate, largest_batch
from fastguide.engine.passes import Conditions, make_passes
from fastguide.engine.pattern import no_layers
from fastguide.engine.plan import Plan, make_plan
from fastguide.engine.program import RowMode
from fastguide.engine.run import Inputs, Progress, run
from fastguide.engine.static import padding
from fastguide.engine.stats import Stats
from fastguide.engine.structure import structure
from fastguide.guidance.base import Guidance, Other
from fastguide.model import Model
from fastguide.sampling.checks import check_shape, device_of, net_as, others_of
from fastguide.sampling.conditions import (
    bind,
    bind_other,
    bind_target,
    named_conditions,
    random_condition,
)
from fastguide.sampling.course import Clamp, Course
from fastguide.sampling.finite import NonFiniteError, check_finite
from fastguide.serving.requests import Packer, Request, amounts_of, packed
from fastguide.solvers import Solver
from fastguide.spacing import Levels
from fastguide.staging.contract import choose_layers, is_staged
from fastguide.staging.perturbation import Layers


class Sampler:
    """Plans a run once and runs it for any conditions and seeds. Calls may come from many threads.

    Args:
        model: what to sample (`fastguide.load`, or a `Model` around any network).
        guidance: a guidance or a sum of them; None for none.
        solver: a solver, with options as in `ddim(eta=1.0)`, or its name; by default the model's
            usual one, `ddim` where it says nothing.
        steps: solver steps, 1 or more.
        spacing: which levels the steps visit, or its name; by default the model's usual one, or
            the process's.
        levels: the levels themselves, instead of `steps` and `spacing`.
        clamp: bound of the denoised image: a number for [-clamp, clamp], a pair, or a
            `DynamicThreshold`; by default the model's usual one, mostly none (`math.inf` is none).
            The noise that x holds is that beside the clamped image, as in ADM.
        dtype: the network's dtype: fp32, bf16 or fp16; by default its own. Where it differs the
            sampler makes a copy of the network (`load(..., dtype=)` saves that). x stays fp32.
        shape: of one sample, by default the model's; the network must be able to take it.
        device: where to run; by default the network's device.
        rows: whether the rows of one evaluation run "batched", "sequential", or batched and, on a
            GPU, another network of the guidance "beside" them on a stream of its own; None for
            batched, or what `warmup` found to be fastest.
        max_batch: the most requests of `submit` that run together.
        max_wait: seconds that a request of `submit` waits at most for others.
        graph: capture runs as CUDA graphs, once for each number of samples, and replay them from
            then on: the "whole" run as one graph, its "steps" as one graph for each kind of
            evaluation, or with True one of these, by size. Conditions, seeds, noise and all numbers
            of the plan may change. Batches are filled up to the next size of `warmup`. A callback
            goes with "steps"; a whole run is eager with one.
        max_captures: the captured runs that are kept, those that were used last.
        fallback: run eagerly where a capture does not fit, instead of the error.

    Raises:
        ValueError, TypeError: an argument that is not as above, named with its value.
    """

    def __init__(
        self,
        model: Model,
        guidance: Guidance | None = None,
        solver: Solver | str | None = None,
        steps: int = 25,
        spacing: Configured[Levels] | str | None = None,
        levels: Levels | None = None,
        clamp: Clamp = None,
        dtype: torch.dtype | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        rows: RowMode | None = None,
        max_batch: int = 16,
        max_wait: float = 0.005,
        graph: bool | Way = False,
        max_captures: int = 8,
        fallback: bool = False,
    ) -> None:
        if not isinstance(model, Model):
            raise TypeError(
                f"model is a {type(model).__name__}, but it should be a fastguide.Model"
            )
        self.model = model
        self.shape = check_shape(model, shape)
        self.device = device_of(model, device)
        self.net, self.dtype = net_as(model, dtype)
        self._settings = Settings(self.shape, self.dtype, model.outputs)
        self._nets: dict[Other | None, Any] = {None: self.net}
        if rows not in (None, *get_args(RowMode)):
            raise ValueError(f"rows is {rows!r}, but it should be one of {get_args(RowMode)}")
        self.rows = rows
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}, but it should be 1 or more")
        if not 0 <= max_wait < math.inf:
            raise ValueError(f"max_wait is {max_wait}, but it should be 0 or more seconds")
        self._packing = (max_batch, max_wait)
        if graph not in (False, True, *get_args(Way)):
            raise ValueError(f"graph is {graph!r}, but it should be a bool, 'whole' or 'steps'")
        if graph and self.device.type != "cuda":
            raise ValueError(
                f"graph is {graph!r}, but the sampler runs on {self.device}, not on a GPU"
            )
        self.graph, self._fallback = graph, fallback
        self._graphs = Graphs(CudaRecorder(self.device), max_captures) if graph else None
        self._ways: dict[Hashable, Way] = {}  # what was chosen for a structure
        self._sizes: set[int] = set()  # of batches that warmup saw
        self._measured: dict[int, RowMode] = {}
        self._prepare(Course(guidance, solver, steps, spacing, levels, clamp))

    def _prepare(self, course: Course) -> None:
        """Plan the run, with nothing that earlier ones left."""
        model, guidance, self._course = self.model, course.guidance, course
        if guidance is not None and not isinstance(guidance, Guidance):
            raise TypeError(
                f"guidance is {guidance!r}, but it should be a Guidance such as CFG(3.0)"
            )
        self.guidance = guidance
        self._conditions = named_conditions(model, guidance)
        self._others = others_of(model, guidance, self.device)
        for one in self._others:
            if one not in self._nets:
                self._nets[one] = net_as(one.model, self.dtype)[0]
        possible = self._others and self.device.type == "cuda"
        if self.rows == "beside" and not possible:
            raise ValueError(
                "rows is 'beside', but that needs a GPU and a guidance with another network"
            )
        self._modes = [m for m in get_args(RowMode) if m != "beside" or possible]
        self._plan_arguments = course.plan_arguments(model)
        self.plan = make_plan(*self._plan_arguments, device=self.device, choose=self._choose)
        if any(pattern.graph for pattern in self.plan.patterns):
            self._nets[None] = differentiable(self._nets[None])
        self._passes = {
            mode: {p: make_passes(p, self._nets, mode) for p in self.plan.patterns}
            for mode in self._modes
        }
        if self.plan.learned and not model.variance:
            raise ValueError(
                f"solver is {self._plan_arguments[2]}, which needs a network that predicts a "
                "variance, but model.variance is False"
            )
        self._preview_plan: Plan | None = None
        self._lock = threading.Lock()
        self._counts = Stats()
        self._packer: Packer | None = None

    def replaced(self, **changes: Any) -> Sampler:
        """A sampler with another `guidance`, `solver`, `steps`, `spacing`, `levels` or `clamp`, by
        these names, as in the constructor; what is not named stays. The network, its captured
        graphs, their memory and what `warmup` found are shared: where only numbers differ (scales,
        eta, levels, clamps, an interval that ends between the same evaluations), nothing is
        captured anew. Counts and requests are its own.

        Raises:
            ValueError, TypeError: an argument that is not as in the constructor.
        """
        other = copy.copy(self)
        other._nets = dict(self._nets)
        other._prepare(self._course.replaced(changes))
        return other

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        cond: Any = None,
        seeds: int | Iterable[int] | Tensor = 0,
        negative: Any = None,
        noise: Tensor | None = None,
        step_noise: Sequence[Tensor] | None = None,
        callback: Callable[[Progress], None] | None = None,
        check: bool = True,
    ) -> Tensor:
        """Sample, fp32 `[B, *shape]`, one sample per seed.

        Args:
            cond: batch-first condition: int labels `[B]` (a tensor, a list, or one int for all), or
                the pytree of tensors that the network takes. None for the null condition.
            seeds: one int in [0, 2^63) per sample. A sample depends on its own seed alone.
            negative: the negative condition, in the form of `cond`; None for the null condition.
            noise: start noise fp32 `[B, *shape]`, instead of the seeds'.
            step_noise: fp32 `[B, *shape]` for each update that draws noise, instead of the seeds'.
            callback: called after every evaluation with a `Progress` (live previews).
            check: raise NonFiniteError where samples are not finite; looked up once, at the end.
        """
        rows = ops.as_seeds(seeds, self.device)
        batch = rows.shape[0]
        if self.plan.batch not in (None, batch):
            raise ValueError(
                f"guidance holds values for {self.plan.batch} samples, but there are {batch} seeds"
            )
        inputs = Inputs(
            conditions=self._bind(cond, negative, batch),
            seeds=rows,
            noise=self._check_noise("noise", noise, batch),
            step_noise=self._check_step_noise(step_noise, batch),
        )
        plan = self.plan if callback is None else self._with_preview()
        samples, first_bad, bad_gradient = self._run(plan, inputs, callback)
        if check:
            check_finite(plan, samples, first_bad, bad_gradient, rows)
        return samples

    def _run(
        self, plan: Plan, inputs: Inputs, callback: Callable[[Progress], None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A run, eagerly, or where the sampler was asked to from graphs."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return self._run_here(plan, inputs, callback)

    def _run_here(
        self, plan: Plan, inputs: Inputs, callback: Callable[[Progress], None] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A run, on whatever thread, on the sampler's device."""
        began, batch = time.perf_counter(), len(inputs.seeds)
        way = self._way(plan, inputs, callback)
        padded = 0 if way is None else padding(batch, self._sizes)
        mode = self._mode(batch + padded)
        passes = self._passes[mode]
        captures = self.captures
        if self._graphs is not None and way is not None:
            settings = (plan, passes, inputs, self._settings, self._drawn, padded, callback, mode)
            try:
                found = run_captured(self._graphs, way, *settings)
            except torch.OutOfMemoryError as error:
                if not self._fallback:
                    message = self._what_fits(inputs, padded)
                    raise torch.OutOfMemoryError(message) from error
                way, padded = None, 0
                with self._lock:
                    self._counts.fallbacks += 1
        if way is None:
            found = run(plan, passes, inputs, *self._settings, callback)
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

    def _way(
        self,
        plan: Plan,
        inputs: Inputs,
        callback: Callable[[Progress], None] | None,
    ) -> Way | None:
        """How the run is captured; None where it is not. Where that is to be chosen: step by step
        where guidance may drop a branch on the way, and where the whole were too large.
        """
        if self._graphs is None:
            return None
        if isinstance(self.graph, str):
            way: Way | None = self.graph
        else:
            form = structure(plan, self.dtype)
            way = self._ways.get(form)
            if way is None:
                passes = self._passes[self._mode(len(inputs.seeds))]
                large = any(map(ending, plan.rows)) or (
                    nodes(plan, passes, inputs, *self._settings) > WHOLE_NODES
                )
                way = self._ways[form] = "steps" if large else "whole"
        return None if callback is not None and way == "whole" else way

    @torch.no_grad()
    def memory(self, batch: int, cond: Any = None, negative: Any = None) -> Memory:
        """What a run of `batch` samples takes of the device's memory, by an estimate: the run is
        gone through on tensors without data, nothing is computed.

        Args:
            cond, negative: as in a call, for ONE sample (batch 1); None for the null condition.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}, but it should be 1 or more")
        return self._estimate(self._bind(cond, negative, 1), batch)

    def _estimate(self, one: Conditions, batch: int) -> Memory:
        mode = self._mode(batch)  # another stream holds what the same one would
        passes = self._passes["batched" if mode == "beside" else mode]
        graph, nets = self._graphs is not None, self._nets.values()
        return estimate(self.plan, passes, one, batch, nets, *self._settings, graph)

    def _what_fits(self, inputs: Inputs, padded: int) -> str:
        """The error of a capture that does not fit."""
        assert self._graphs is not None
        batch, one = len(inputs.seeds) + padded, inputs.conditions.mapped(lambda leaf: leaf[:1])
        small, large = self._estimate(one, 1), self._estimate(one, batch)
        free = self._graphs.recorder.free()
        fits = min(largest_batch(small, large, batch, free), batch - 1)
        advice = f"{fits} samples may fit" if fits else "not even one sample may fit"
        return (
            f"a captured run of {batch} samples does not fit: it takes about "
            f"{large.run / 2**20:.0f} MiB beside the weights, {free / 2**20:.0f} MiB are free; "
            f"by the estimate {advice}"
        )

    def _drawn(self, own: Any) -> Callable[[Tensor], Any] | None:
        """The random condition beside the network's own, where the guidance has one."""
        if "random" not in self._conditions:
            return None
        return partial(random_condition, self.model, own)

    def stats(self) -> Stats:
        """What the sampler has done so far."""
        with self._lock:
            counts = replace(self._counts)
        if self._graphs is not None:
            counts.captures, counts.replays = self._graphs.captures, self._graphs.replays
        return counts

    @property
    def captures(self) -> int:
        """How many CUDA graphs were captured, by this sampler and those that share its graphs."""
        return 0 if self._graphs is None else self._graphs.captures

    def _choose(self, layers: Layers) -> tuple[str, ...]:
        """The names of the network's layers that a guidance names."""
        if is_staged(self.net):
            return choose_layers(layers, self.net)
        return no_layers(layers, getattr(self.net, "why_not_staged", None))

    def _mode(self, batch: int) -> RowMode:
        return self.rows or self._measured.get(batch, "batched")

    @torch.no_grad()
    def warmup(
        self, batches: int | Iterable[int], cond: Any = None, negative: Any = None
    ) -> dict[int, RowMode]:
        """Run the network once for each batch size and find out how its rows are fastest (see
        `rows` of the sampler); later calls with that many seeds run so. Returns the choices.

        Args:
            cond, negative: as in a call, for ONE sample (batch 1); None for the null condition.
        """
        one = self._bind(cond, negative, 1)
        for batch in [batches] if isinstance(batches, int) else list(batches):
            if batch < 1:
                raise ValueError(f"batches has {batch}, but it should be 1 or more")
            modes = [self.rows] if self.rows else self._modes
            seconds = measure_rows(
                self.plan,
                {mode: self._passes[mode] for mode in modes},
                one.repeated(batch),
                torch.zeros(batch, dtype=torch.int64, device=self.device),
                *self._settings,
            )
            with self._lock:
                self._measured[batch] = min(seconds, key=lambda mode: seconds[mode])
            if logging_on():
                milliseconds = {mode: 1e3 * each for mode, each in seconds.items()}
                log("warmup", batch=batch, mode=self._measured[batch], milliseconds=milliseconds)
            if self._graphs is not None:
                self._sizes.add(batch)
                noughts = torch.zeros(batch, dtype=torch.int64, device=self.device)
                self._run(self.plan, Inputs(one.repeated(batch), noughts))
        return dict(self._measured)

    def submit(
        self,
        cond: Any = None,
        seed: int = 0,
        guidance: Guidance | None = None,
        negative: Any = None,
    ) -> Future[Tensor]:
        """Ask for one sample; a thread packs what is asked for into batches. Its result is fp32
        `[*shape]`, what a call with this seed alone would give, to rounding. It may be cancelled
        until it runs.

        Args:
            cond, negative: as in a call, for ONE sample: an int, or tensors of batch 1.
            seed: one int in [0, 2^63).
            guidance: other scales and weights, and narrower schedules, of the deltas that the
                sampler's own guidance has; None for its own.

        Raises:
            ValueError: an argument that is not as above, named with its value.
            RuntimeError: the sampler was closed.
        """
        ops.as_seeds(seed, self.device)
        if guidance is None and self.plan.batch is not None:
            raise ValueError(
                f"guidance of the sampler holds values for {self.plan.batch} samples, but a "
                "request is one: give it a guidance of its own"
            )
        other = self.guidance if guidance is None else guidance
        weights, nag = amounts_of(self.plan, other, self._choose)
        with torch.inference_mode(False), torch.no_grad():
            request = Request(int(seed), self._bind(cond, negative, 1), weights, nag)
        with self._lock:
            if self._packer is None:
                self._packer = Packer(self._run_requests, *self._packing)
        return self._packer.put(request)

    def close(self) -> None:
        """Finish the requests of `submit` that were taken, and take no more."""
        with self._lock:
            packer = self._packer
        if packer is not None:
            packer.close()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _run_requests(self, requests: list[Request]) -> None:
        """One batch of requests; a sample that is not finite fails alone."""
        plan, conditions, seeds = packed(requests, self.plan)
        conditions = replace(conditions, drawn=self._drawn(conditions.fixed[None]["cond"]))
        samples, first_bad, bad_gradient = self._run(plan, Inputs(conditions, seeds))
        for i, request in enumerate(requests):
            one = samples[i : i + 1]
            try:
                check_finite(plan, one, first_bad[i : i + 1], bad_gradient, seeds[i : i + 1])
            except NonFiniteError as error:
                request.future.set_exception(error)
            else:
                request.future.set_result(one[0].clone())

    def _with_preview(self) -> Plan:
        with self._lock:
            if self._preview_plan is None:
                self._preview_plan = make_plan(
                    *self._plan_arguments,
                    preview=True,
                    device=self.device,
                    choose=self._choose,
                )
            return self._preview_plan

    def _bind(self, cond: Any, negative: Any, batch: int) -> Conditions:
        """What all networks take as `cond`."""
        own = bind(self.model, self._conditions, cond, negative, batch, self.device)
        prepare = getattr(self.net, "prepare", None)  # what depends on the condition alone, once
        if prepare is not None and "random" not in self._conditions:
            own = {name: value if value is None else prepare(value) for name, value in own.items()}
        fixed: dict[Other | None, Any] = {None: own}
        for other in self._others:
            fixed[other] = bind_other(other.model, self.model, cond, batch, self.device)
        target = None
        if "target" in self._conditions:
            target = bind_target(self.model, cond, batch, self.device)
        return Conditions(fixed, self._drawn(own["cond"]), target)

    def _check_noise(self, name: str, noise: Tensor | None, batch: int) -> Tensor | None:
        if noise is None:
            return None
        if noise.shape != (batch, *self.shape) or noise.dtype != torch.float32:
            raise ValueError(
                f"{name} is {noise.dtype} of shape {tuple(noise.shape)}, but it should be fp32 "
                f"{(batch, *self.shape)}"
            )
        return noise.to(self.device).contiguous()

    def _check_step_noise(self, noises: Sequence[Tensor] | None, batch: int) -> list[Tensor] | None:
        if noises is None:
            return None
        draws = sum(row.draws for row in self.plan.rows[1:])
        if len(noises) != draws:
            raise ValueError(
                f"step_noise has {len(noises)} tensors, but the plan draws {draws} times"
            )
        checked = [self._check_noise(f"step_noise[{i}]", n, batch) for i, n in enumerate(noises)]
        return [noise for noise in checked if noise is not None]


def sample(
    model: Model,
    cond: Any = None,
    guidance: Guidance | None = None,
    solver: Solver | str | None = None,
    steps: int = 25,
    seeds: int | Iterable[int] | Tensor = 0,
    *,
    negative: Any = None,
    spacing: Configured[Levels] | str | None = None,
    levels: Levels | None = None,
    clamp: Clamp = None,
    dtype: torch.dtype | None = None,
    shape: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    noise: Tensor | None = None,
    step_noise: Sequence[Tensor] | None = None,
    callback: Callable[[Progress], None] | None = None,
    check: bool = True,
) -> Tensor:
    """Sample once, fp32 `[B, *shape]`: `Sampler(...)` and one call of it; see there."""
    sampler = Sampler(model, guidance, solver, steps, spacing, levels, clamp, dtype, shape, device)
    return sampler(cond, seeds, negative, noise, step_noise, callback, check)
