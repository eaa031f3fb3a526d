"""The door: `sample` for one call, `Sampler` for many with the same settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastguide.common.arguments import answering
from fastguide.common.checks import check_int, check_number
from fastguide.common.locks import ProcessLock
from fastguide.common.options import Configured
from fastguide.engine.captured import Way
from fastguide.engine.known import Measurement
from fastguide.engine.memory import Memory
from fastguide.engine.plan import Noise
from fastguide.engine.program import RowMode
from fastguide.engine.stats import Stats
from fastguide.engine.watch import Callback
from fastguide.guidance.base import Guidance
from fastguide.model import Model
from fastguide.process import Level
from fastguide.sampling.checks import check_callback, check_graph, check_packing, check_rows
from fastguide.sampling.course import Clamp, Course
from fastguide.sampling.finite import check_finite
from fastguide.sampling.inputs import bind_all, make_inputs, seeds_of
from fastguide.sampling.inversion import inverted
from fastguide.sampling.known import as_known
from fastguide.sampling.planning import Planned, make_ready
from fastguide.sampling.rollout import Rollout, check_rollout, rollout_of
from fastguide.sampling.running import Runner
from fastguide.sampling.setup import check_as_made, set_up
from fastguide.sampling.warmup import warm_up
from fastguide.solvers import Solver
from fastguide.solvers.names import Named
from fastguide.spacing import Levels

if TYPE_CHECKING:
    from fastguide.serving.submit import Requests


class Sampler:
    """Plans a run once and runs it for any conditions and seeds. Calls may come from many threads.
    At the end of `with Sampler(...) as sampler:` it is closed. A copy (also a pickled one) has the
    network and the settings, and plans and captures for itself.

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
        dtype: the network's dtype, fp32, bf16 or fp16, or such a name; by default its own. Where it
            differs the sampler makes a copy of the network (`load(..., dtype=)` saves that). x
            stays fp32.
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
        compile: run each program of the plan as one graph of `torch.compile`, or with these options
            of it: once for each pattern and number of samples, at its first call or in `warmup`.
        max_captures: the captured runs that are kept, those that were used last.
        fallback: run eagerly where a capture does not fit, instead of the error.
        noise: what updates draw: "independent" noise by (seed, evaluation, element), or
            "brownian": the increments of one path by (seed, element) over sigma / (alpha + sigma),
            so that runs of other step counts, levels or solvers approach the same image.
        strength: calls start from images, `init`, noised as far as this share of the steps goes
            (0.6 of 25 steps: the last 15), or to a `Level`; None: they start from noise.

    Raises:
        ValueError, TypeError: an argument that is not as above, named with its value.
    """

    @answering
    def __init__(
        self,
        model: Model,
        guidance: Guidance | None = None,
        solver: Solver | Named | str | None = None,
        steps: int = 25,
        spacing: Configured[Levels] | str | None = None,
        levels: Levels | None = None,
        clamp: Clamp = None,
        dtype: torch.dtype | str | None = None,
        shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        rows: RowMode | None = None,
        max_batch: int = 16,
        max_wait: float = 0.005,
        graph: bool | Way = False,
        max_captures: int = 8,
        fallback: bool = False,
        strength: float | Level | None = None,
        noise: Noise = "independent",
        compile: bool | Mapping[str, Any] = False,
    ) -> None:
        setup = set_up(model, shape, device, dtype, compile)
        check_rows(rows)
        check_packing(max_batch, max_wait)
        check_graph(graph, setup.device)
        self.model, self.net, self.device = model, setup.net, setup.device
        self.shape, self.dtype = setup.settings.shape, setup.settings.dtype
        self._packing = (max_batch, max_wait)
        self._runner = Runner(setup.device, rows, graph, max_captures, fallback)
        course = Course(guidance, solver, steps, spacing, levels, clamp, strength, noise)
        self._take(make_ready(setup, course, rows))

    def _take(self, planned: Planned) -> None:
        """Run this from now on, with nothing that was asked for before."""
        self._planned, self.plan, self.guidance = planned, planned.plan, planned.course.guidance
        self._lock = ProcessLock()
        self._asked: Requests | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # what it was made from: a copy plans, measures and captures for itself
        course, runner = self._planned.course, self._runner
        names = [one.name for one in fields(course) if one.name != "upward"]
        what = {name: getattr(course, name) for name in names}
        where: dict[str, Any] = {
            "dtype": self.dtype,
            "shape": self.shape,
            "device": str(self.device),
        }
        compiled = self._planned.setup.compiled
        where["compile"] = False if compiled is None else compiled.given or True
        limit = {} if runner.graphs is None else {"max_captures": runner.graphs.limit}
        how = {"rows": runner.rows, "graph": runner.graph, "fallback": runner.fallback, **limit}
        packing = dict(zip(("max_batch", "max_wait"), self._packing, strict=True))
        return _remade, (self.model, {**what, **where, **how, **packing})

    def replaced(self, **changes: Any) -> Sampler:
        """A sampler with another `guidance`, `solver`, `steps`, `spacing`, `levels`, `clamp`,
        `strength` or `noise`, by these names, as in the constructor; what is not named stays. The
        network, its captured graphs, their memory and what `warmup` found are shared: where only
        numbers differ (scales, eta, levels, clamps, an interval that ends between the same
        evaluations), nothing is captured anew. Counts and requests are its own.

        Raises:
            ValueError, TypeError: an argument that is not as in the constructor.
        """
        planned, runner = self._planned, self._runner.uncounted()
        course = planned.course.replaced(changes)
        other = object.__new__(Sampler)
        other.__dict__ |= self.__dict__
        other._runner = runner
        other._take(make_ready(planned.setup, course, runner.rows, planned.nets))
        return other

    @answering
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(
        self,
        cond: Any = None,
        seeds: int | Iterable[int] | Tensor | None = None,
        negative: Any = None,
        noise: Tensor | None = None,
        step_noise: Sequence[Tensor] | None = None,
        callback: Callback | None = None,
        check: bool = True,
        *,
        init: Tensor | None = None,
        known: Tensor | None = None,
        mask: Tensor | None = None,
        measurement: Measurement | None = None,
    ) -> Tensor:
        """Sample, fp32 `[B, *shape]`, one sample per seed.

        Args:
            cond: batch-first condition: class labels `[B]`, numbers or names (a list, an array or a
                tensor, or one for all), or the pytree of tensors that the network takes. None for
                the null condition, also of single samples of a list.
            seeds: one int in [0, 2^63) per sample; an int is the first of as many as there are
                conditions or images, and None is 0, 1, ... A sample depends on its own seed alone.
            negative: the negative condition, in the form of `cond`; None for the null condition.
            noise: start noise fp32 `[B, *shape]` of standard normals, instead of the seeds'. x
                starts at it (VP, which keeps the variance of normalised data), or at it times the
                first level's sigma (EDM; flow, where that is 1 at t = 1); with `init` at
                `alpha init + sigma noise` everywhere.
            step_noise: fp32 `[B, *shape]` for each update that draws noise, instead of the seeds'.
            callback: called after every evaluation with a `Progress` (live previews). What it
                writes to `x` is what the next evaluation sees; `return fastguide.STOP` ends the
                run with the denoised image so far.
            check: raise NonFiniteError where samples are not finite; looked up once, at the end.
            init: the image that the run starts from, fp32 `[B, *shape]` or `[*shape]`: of a sampler
                with a `strength`.
            known: an image of which a part is known, like `init`; the sample has that part of it.
            mask: which pixels are: 1 where known, 0 where sampled, between where blended at every
                level; broadcastable to `[B, *shape]`.
            measurement: or which projection of it is: `fastguide.grey` for colourisation,
                `fastguide.pooled(4)` for super-resolution, any orthogonal projection of images.
        """
        check_as_made(self.net)
        planned = self._planned
        if callback is not None:
            check_callback(callback)
        numbers = seeds_of(planned, seeds, cond, negative, noise, init, known)
        part = as_known(planned, known, mask, measurement, len(numbers))
        inputs = make_inputs(planned, cond, negative, numbers, noise, step_noise, init)
        plan = planned.plan if callback is None else planned.preview
        samples, first_bad, bad_gradient = self._runner.run(planned, inputs, plan, callback, part)
        if check:
            check_finite(plan, samples, first_bad, bad_gradient, numbers)
        return samples

    @torch.inference_mode(False)
    @torch.no_grad()
    def rollout(
        self,
        cond: Any = None,
        seeds: int | Iterable[int] | Tensor | None = None,
        negative: Any = None,
        noise: Tensor | None = None,
        step_noise: Sequence[Tensor] | None = None,
        *,
        init: Tensor | None = None,
    ) -> Rollout:
        """Sample, and keep x of every step and the log-probability of each that draws noise; the
        arguments are those of a call.

        Raises:
            ValueError: as in a call, or the solver scales its noise by a learned variance.
        """
        planned = self._planned
        check_rollout(planned.plan, None)
        numbers = seeds_of(planned, seeds, cond, negative, noise, init)
        inputs = make_inputs(planned, cond, negative, numbers, noise, step_noise, init)
        trajectory: list[Tensor] = []

        def look(_: int, state: Tensor) -> bool:
            trajectory.append(state[0][: len(numbers)].clone())
            return False

        samples, first_bad, bad_gradient = self._runner.run(planned, inputs, look=look)
        check_finite(planned.plan, samples, first_bad, bad_gradient, numbers)
        return rollout_of(planned.plan, torch.stack(trajectory), numbers, inputs.step_noise)

    @torch.inference_mode(False)
    @torch.no_grad()
    def invert(self, images: Tensor, cond: Any = None, negative: Any = None) -> Tensor:
        """The noise fp32 `[B, *shape]` from which the sampler makes `images`: the same run upwards
        (DDIM inversion and its like), exact to the order of its solver, which must draw nothing.
        Give it back as `noise=`, with another condition to edit the images; a sampler with a
        `strength` takes them as `init` too.

        Args:
            images: fp32 `[B, *shape]`.
            cond, negative: as in a call.
        """
        return inverted(self._runner, self._planned, images, cond, negative)

    @torch.inference_mode(False)
    @torch.no_grad()
    def memory(self, batch: int, cond: Any = None, negative: Any = None) -> Memory:
        """What a run of `batch` samples takes of the device's memory, by an estimate: the run is
        gone through on tensors without data, nothing is computed.

        Args:
            cond, negative: as in a call, for ONE sample (batch 1); None for the null condition.
        """
        check_int("batch", batch)
        one = bind_all(self._planned, cond, negative, 1)
        return self._runner.memory(self._planned, one, batch)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> Stats:
        """What the sampler has done so far."""
        return self._runner.stats()

    @property
    def captures(self) -> int:
        """How many CUDA graphs were captured, by this sampler and those that share its graphs."""
        return self._runner.captures

    @property
    def rows(self) -> RowMode | None:
        """As in the constructor."""
        return self._runner.rows

    @property
    def graph(self) -> bool | Way:
        """As in the constructor."""
        return self._runner.graph

    @torch.inference_mode(False)
    @torch.no_grad()
    def warmup(
        self, batches: int | Iterable[int], cond: Any = None, negative: Any = None
    ) -> dict[int, RowMode]:
        """Run the network once for each batch size and find out how its rows are fastest (see
        `rows` of the sampler); later calls with that many seeds run so. Returns the choices.

        Args:
            cond, negative: as in a call, for ONE sample (batch 1); None for the null condition.
        """
        one = bind_all(self._planned, cond, negative, 1)
        return warm_up(self._runner, self._planned, one, batches)

    def submit(
        self,
        cond: Any = None,
        seed: int = 0,
        guidance: Guidance | None = None,
        negative: Any = None,
        timeout: float | None = None,
    ) -> Future[Tensor]:
        """Ask for one sample; a thread packs what is asked for into batches. Its result is fp32
        `[*shape]`, what a call with this seed alone would give, to rounding. It may be cancelled
        until it runs. Where a batch fails, each of its requests runs once more, alone.

        Args:
            cond, negative: as in a call, for ONE sample: an int, or tensors of batch 1.
            seed: one int in [0, 2^63).
            guidance: other scales and weights, and narrower schedules, of the deltas that the
                sampler's own guidance has; None for its own.
            timeout: seconds until it fails with a TimeoutError where it is not done, even if the
                network hangs; None for no limit.

        Raises:
            ValueError, TypeError: an argument that is not as above, named with its value.
            RuntimeError: the sampler was closed, or something such as SystemExit ended its thread.
        """
        return self._requests.submit(cond, seed, guidance, negative, timeout)

    def close(self, timeout: float | None = None) -> None:
        """Finish the requests of `submit` that were taken, and take no more.

        Args:
            timeout: seconds after which what is not done fails with a TimeoutError; None for no
                limit. From a callback of a request's future nothing is waited for.
        """
        if timeout is not None:
            check_number("timeout", timeout, 0.0)
        self._requests.close(timeout)

    @property
    def _requests(self) -> Requests:
        from fastguide.serving.submit import Requests

        with self._lock:
            if self._asked is None:
                self._asked = Requests(self._planned, self._runner, *self._packing)
            return self._asked


def _remade(model: Model, arguments: dict[str, Any]) -> Sampler:
    return Sampler(model, **arguments)


@answering
def sample(
    model: Model,
    cond: Any = None,
    guidance: Guidance | None = None,
    solver: Solver | Named | str | None = None,
    steps: int = 25,
    seeds: int | Iterable[int] | Tensor | None = None,
    *,
    negative: Any = None,
    spacing: Configured[Levels] | str | None = None,
    levels: Levels | None = None,
    clamp: Clamp = None,
    dtype: torch.dtype | str | None = None,
    shape: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    noise: Tensor | Noise | None = None,
    step_noise: Sequence[Tensor] | None = None,
    callback: Callback | None = None,
    check: bool = True,
    init: Tensor | None = None,
    strength: float | Level | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    measurement: Measurement | None = None,
) -> Tensor:
    """Sample once, fp32 `[B, *shape]`, one sample per seed: `Sampler(...)` and one call of it.

    Args:
        model: what to sample (`fastguide.load`, or a `Model` around any network).
        cond: class labels `[B]`, numbers or names, or the pytree of batch-first tensors that the
            network takes; one label for all; None for the null condition.
        guidance: a guidance or a sum of them, such as `CFG(3.0)`; None for none.
        solver: a solver, with options as in `ddim(eta=1.0)`, or its name.
        steps: solver steps, 1 or more.
        seeds: one int per sample; an int is the first of them; None for 0, 1, ...
        negative: the negative condition, in the form of `cond`.
        noise: that of the call, a tensor, or that of the sampler, such as "brownian".
        step_noise, callback, check, init, known, mask, measurement: as in a call of
            `fastguide.Sampler`.
        spacing, levels, clamp, dtype, shape, device, strength: as `fastguide.Sampler` takes them.

    Raises:
        ValueError, TypeError: an argument that is not as above, named with its value.
        NonFiniteError: samples are not finite.

    Example:
        >>> model = fastguide.load("fashion")
        >>> images = fastguide.sample(model, ["Dress", "Bag"], fastguide.CFG(3.0), steps=25)
        >>> images.shape
        torch.Size([2, 1, 28, 28])
    """
    course = (guidance, solver, steps, spacing, levels, clamp)
    drawn: dict[str, Any] = {"noise": noise} if isinstance(noise, str) else {}
    sampler = Sampler(model, *course, dtype, shape, device, strength=strength, **drawn)
    noise = None if isinstance(noise, str) else noise
    part: dict[str, Any] = {"known": known, "mask": mask, "measurement": measurement}
    return sampler(cond, seeds, negative, noise, step_noise, callback, check, init=init, **part)


@answering
def invert(
    model: Model,
    images: Tensor,
    cond: Any = None,
    guidance: Guidance | None = None,
    solver: Solver | Named | str | None = None,
    steps: int = 25,
    *,
    negative: Any = None,
    spacing: Configured[Levels] | str | None = None,
    levels: Levels | None = None,
    clamp: Clamp = None,
    dtype: torch.dtype | str | None = None,
    shape: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    strength: float | Level | None = None,
) -> Tensor:
    """The noise fp32 `[B, *shape]` of images: `Sampler(...)` and its `invert`.

    Args:
        model, guidance, solver, steps, spacing, levels, clamp, dtype, shape, device, strength: as
            `fastguide.Sampler` takes them.
        images: fp32 `[B, *shape]`.
        cond, negative: as in a call of `fastguide.Sampler`.

    Raises:
        ValueError, TypeError: an argument that is not as above, named with its value.

    Example:
        >>> noise = fastguide.invert(model, images, ["Dress"])
        >>> edited = fastguide.sample(model, ["Coat"], noise=noise)
    """
    course = (guidance, solver, steps, spacing, levels, clamp)
    sampler = Sampler(model, *course, dtype, shape, device, strength=strength)
    return sampler.invert(images, cond, negative)
