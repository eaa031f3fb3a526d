"""The door: `sample` for one call, `Sampler` for many with the same settings."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fastguide import ops
from fastguide.conditions import (
    bind,
    bind_other,
    bind_target,
    named_conditions,
    random_condition,
)
from fastguide.engine.gradient import differentiable
from fastguide.engine.graph import CudaRecorder, Graphs
from fastguide.engine.measure import measure_rows
from fastguide.engine.passes import Conditions, make_passes
from fastguide.engine.pattern import no_layers
from fastguide.engine.plan import Plan, make_plan
from fastguide.engine.program import RowMode
from fastguide.engine.run import Inputs, Progress, run
from fastguide.engine.static import as_tree, padding
from fastguide.engine.stats import Stats
from fastguide.guidance.base import Guidance, Other
from fastguide.model import Model
from fastguide.options import Configured, by_name
from fastguide.perturbation import Layers
from fastguide.requests import Packer, Request, amounts_of, packed
from fastguide.solvers import Solver, ddim, solver_by_name
from fastguide.spacing import SPACINGS, Levels, make_levels
from fastguide.staged import choose_layers, is_staged
from fastguide.threshold import DynamicThreshold

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class NonFiniteError(FloatingPointError):
    """Some samples are NaN or infinite. `samples` holds all of them; `evaluations` says for each
    the evaluation (1, 2, ...) at which it first was, or None."""

    def __init__(self, message: str, samples: Tensor, evaluations: list[int | None]) -> None:
        super().__init__(message)
        self.samples = samples
        self.evaluations = evaluations


class Sampler:
    """Plans a run once and runs it for any conditions and seeds. Calls may come from many threads.

    Args:
        model: what to sample (`fastguide.load`, or a `Model` around any network).
        guidance: a guidance or a sum of them; None for none.
        solver: a solver, with options as in `ddim(eta=1.0)`, or its name.
        steps: solver steps, 1 or more.
        spacing: which levels the steps visit, or its name; by default the process's usual one.
        levels: the levels themselves, instead of `steps` and `spacing`.
        clamp: bound of the denoised image: a number for [-clamp, clamp], a pair, or a
            `DynamicThreshold`. The noise that x holds is that beside the clamped image, as in ADM.
        dtype: the network's dtype: fp32, bf16 or fp16; by default its own. Where it differs the
            sampler makes a copy of the network (`load(..., dtype=)` saves that). x stays fp32.
        shape: of one sample, by default the model's; the network must be able to take it.
        device: where to run; by default the network's device.
        rows: whether the rows of one evaluation run "batched", "sequential", or batched and, on a
            GPU, another network of the guidance "beside" them on a stream of its own; None for
            batched, or what `warmup` found to be fastest.
        max_batch: the most requests of `submit` that run together.
        max_wait: seconds that a request of `submit` waits at most for others.
        graph: capture the whole run as a CUDA graph, once for each number of samples, and replay it
            from then on; not with a callback. Conditions, seeds, noise and the scales of requests
            may change. Batches are filled up to the next size of `warmup`.
        max_captures: the captures that are kept, those that were used last.

    Raises:
        ValueError, TypeError: an argument that is not as above, named with its value.
    """

    def __init__(
        self,
        model: Model,
        guidance: Guidance | None = None,
        solver: Solver | str = ddim,
        steps: int = 25,
        spacing: Configured[Levels] | str | None = None,
        levels: Levels | None = None,
        clamp: float | tuple[float, float] | DynamicThreshold | None = None,
        dtype: torch.dtype | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        rows: RowMode | None = None,
        max_batch: int = 16,
        max_wait: float = 0.005,
        graph: bool = False,
        max_captures: int = 8,
    ) -> None:
        if not isinstance(model, Model):
            raise TypeError(
                f"model is a {type(model).__name__}, but it should be a fastguide.Model"
            )
        if guidance is not None and not isinstance(guidance, Guidance):
            raise TypeError(
                f"guidance is {guidance!r}, but it should be a Guidance such as CFG(3.0)"
            )
        solver = solver_by_name(solver) if isinstance(solver, str) else solver
        if not isinstance(solver, Configured):
            raise TypeError(
                f"solver is {solver!r}, but it should be a solver such as fastguide.ddim"
            )
        spacing = by_name("spacing", spacing, SPACINGS) if isinstance(spacing, str) else spacing
        if levels is None:
            levels = make_levels(model.process, steps, spacing)
        self.model = model
        self.guidance = guidance
        self.shape = _check_shape(model, shape)
        self.device = _device_of(model, device)
        self.net, self.dtype = _net_as(model, dtype)
        self._conditions = named_conditions(model, guidance)
        self._others = _others(model, guidance, self.device)
        nets = {None: self.net} | {one: _net_as(one.model, self.dtype)[0] for one in self._others}
        self._plan_arguments = (
            model.prediction,
            levels,
            solver,
            guidance,
            _bounds(clamp),
        )
        if rows not in (None, *get_args(RowMode)):
            raise ValueError(f"rows is {rows!r}, but it should be one of {get_args(RowMode)}")
        possible = self._others and self.device.type == "cuda"
        if rows == "beside" and not possible:
            raise ValueError(
                "rows is 'beside', but that needs a GPU and a guidance with another network"
            )
        self._modes = [m for m in get_args(RowMode) if m != "beside" or possible]
        self.plan = make_plan(*self._plan_arguments, device=self.device, choose=self._choose)
        if any(pattern.graph for pattern in self.plan.patterns):
            nets[None] = differentiable(self.net)
        self.rows = rows
        self._passes = {
            mode: {pattern: make_passes(pattern, nets, mode) for pattern in self.plan.patterns}
            for mode in self._modes
        }
        self._measured: dict[int, RowMode] = {}
        if self.plan.learned and not model.variance:
            raise ValueError(
                f"solver is {solver}, which needs a network that predicts a variance, but "
                "model.variance is False"
            )
        self._preview_plan: Plan | None = None
        self._lock = threading.Lock()
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}, but it should be 1 or more")
        if not 0 <= max_wait < math.inf:
            raise ValueError(f"max_wait is {max_wait}, but it should be 0 or more seconds")
        if graph and self.device.type != "cuda":
            raise ValueError(f"graph is True, but the sampler runs on {self.device}, not on a GPU")
        self._graphs = Graphs(CudaRecorder(self.device), max_captures) if graph else None
        self._captured: set[int] = set()
        self._counts = Stats()
        self._packing = (max_batch, max_wait)
        self._packer: Packer | None = None

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
            _check_finite(plan, samples, first_bad, bad_gradient, rows)
        return samples

    def _run(
        self, plan: Plan, inputs: Inputs, callback: Callable[[Progress], None] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A run, eagerly, or where the sampler was asked to from a graph."""
        mode = self._mode(len(inputs.seeds))
        settings = (self.shape, self.dtype, self.model.outputs)
        padded = 0
        if self._graphs is None or callback is not None:
            found = run(plan, self._passes[mode], inputs, *settings, callback)
        else:
            batch = len(inputs.seeds)
            padded = padding(batch, self._captured) if self._captured else 0
            tree, rebuild = as_tree(plan, inputs, self._drawn, padded)

            def captured(given: Any) -> tuple[Tensor, Tensor, Tensor]:
                return run(*rebuild(given, self._passes[mode]), *settings)

            samples, first_bad, bad_gradient = self._graphs((mode,), tree, captured)
            found = samples[:batch], first_bad[:batch], bad_gradient
        with self._lock:
            self._counts.add(plan, self._passes[mode], len(inputs.seeds), padded)
        return found

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
                self.shape,
                self.dtype,
                self.model.outputs,
            )
            with self._lock:
                self._measured[batch] = min(seconds, key=lambda mode: seconds[mode])
            if self._graphs is not None:
                self._captured.add(batch)
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
                _check_finite(plan, one, first_bad[i : i + 1], bad_gradient, seeds[i : i + 1])
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
    solver: Solver | str = ddim,
    steps: int = 25,
    seeds: int | Iterable[int] | Tensor = 0,
    *,
    negative: Any = None,
    spacing: Configured[Levels] | str | None = None,
    levels: Levels | None = None,
    clamp: float | tuple[float, float] | DynamicThreshold | None = None,
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


def _check_shape(model: Model, shape: Sequence[int] | None) -> tuple[int, ...]:
    chosen = model.shape if shape is None else tuple(int(side) for side in shape)
    if len(chosen) != len(model.shape) or chosen[0] != model.shape[0] or min(chosen) < 1:
        raise ValueError(f"shape is {chosen}, but the model samples {model.shape}")
    check = getattr(model.net, "check_shape", None)
    if check is not None:
        check(chosen)
    return chosen


def _device_of(model: Model, device: torch.device | str | None) -> torch.device:
    parameter = model.parameter
    if parameter is None:
        return torch.device(device or "cpu")
    if device is not None and torch.device(device).type != parameter.device.type:
        raise ValueError(f"device is {device}, but the network is on {parameter.device}")
    return parameter.device


def _net_as(model: Model, dtype: torch.dtype | None) -> tuple[Any, torch.dtype]:
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype}, but it should be fp32, bf16 or fp16")
    parameter = model.parameter
    if parameter is None:
        return model.net, dtype or torch.float32
    if dtype is None or dtype == parameter.dtype:
        return model.net, parameter.dtype
    assert isinstance(model.net, nn.Module)
    return copy.deepcopy(model.net).to(dtype), dtype


def _others(model: Model, guidance: Guidance | None, device: torch.device) -> tuple[Other, ...]:
    """The other networks that the guidance names, if they can take the place of `model`."""
    terms = guidance.terms() if guidance is not None else ()
    others = dict.fromkeys(term.branch.net for term in terms if term.branch.net is not None)
    for other in others:
        for name in ("shape", "process", "prediction"):
            theirs, ours = getattr(other.model, name), getattr(model, name)
            if theirs != ours:
                raise ValueError(
                    f"guidance names another model whose {name} is {theirs}, but the sampled "
                    f"model's is {ours}"
                )
        both = isinstance(other.model.null, int) and isinstance(model.null, int)
        if both and other.model.null != model.null:
            raise ValueError(
                f"guidance names another model of {other.model.null} classes, but the sampled "
                f"model has {model.null}"
            )
        parameter = other.model.parameter
        if parameter is not None and parameter.device != device:
            raise ValueError(
                f"guidance names another model on {parameter.device}, but the sampled model is on "
                f"{device}"
            )
    return tuple(others)


def _bounds(
    clamp: float | tuple[float, float] | DynamicThreshold | None,
) -> tuple[float, float] | DynamicThreshold | None:
    if clamp is None or isinstance(clamp, DynamicThreshold):
        return clamp
    low, high = (-clamp, clamp) if isinstance(clamp, (int, float)) else clamp
    if not low < high or math.isnan(low) or math.isnan(high):
        raise ValueError(
            f"clamp is {clamp!r}, but it should be a positive number or a pair low < high"
        )
    return float(low), float(high)


def _check_finite(
    plan: Plan, samples: Tensor, first_bad: Tensor, bad_gradient: Tensor, seeds: Tensor
) -> None:
    found = torch.cat([first_bad.long(), bad_gradient.view(1)])
    *rows, gradient = found.tolist()  # the run's one wait for the device
    bad = [(row, i) for i, row in enumerate(rows) if row < len(plan.rows)]
    if not bad:
        return
    numbers = [0]
    for row in plan.rows[1:]:
        numbers.append(numbers[-1] + (row.pattern is not None))
    row, i = min(bad)
    pattern = plan.rows[gradient].pattern if gradient <= row else None
    names = {b.potential.name for b in pattern.branches if b.potential} if pattern else set()
    cause = f"; the gradient of the {' or the '.join(sorted(names))} is not" if names else ""
    raise NonFiniteError(
        f"{len(bad)} of {len(rows)} samples are not finite; the first is sample {i} (seed "
        f"{int(seeds[i])}), from evaluation {numbers[row]} of {plan.evaluations} on, "
        f"at {plan.rows[row].at}{cause}",
        samples,
        [numbers[r] if r < len(plan.rows) else None for r in rows],
    )
