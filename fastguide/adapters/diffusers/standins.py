"""What takes the place of a pipeline's network and scheduler while it runs.

Each is of a thin subclass of the original's own class and shares its `__dict__`: whatever is read
from it, called on it or set on it is the original's. Only what the pipeline's loop calls is ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastguide.adapters.diffusers.run import Run

RUN, INNER = "fastguide_run", "fastguide_inner"
_OF_STANDIN = frozenset((RUN, INNER, "__class__", "__dict__", "__call__"))
_get = object.__getattribute__


class Network:
    """Evaluates all branches, and returns zeros, because the scheduler knows the predictions."""

    __slots__ = ()
    fastguide_run: Run

    def __getattribute__(self, name: str) -> Any:
        # methods are the original's, because some of them keep what they are called on
        # (cache_context, which a Flux pipeline calls, makes a registry of hooks that does)
        return _get(self, name) if name in _OF_STANDIN else getattr(_get(self, INNER), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        like = _get(self, RUN).predict(args, kwargs, _get(self, INNER))
        return Output(like) if kwargs.get("return_dict", True) else (like,)


@dataclass(frozen=True)
class Output:
    """What a network returns where a tuple is not asked for."""

    sample: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return (self.sample,)[index]


class Scheduler:
    """The updates are ours, the rest is the scheduler's own."""

    __slots__ = ()
    fastguide_run: Run
    fastguide_inner: Any

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *_: Any, **__: Any) -> Tensor:
        """The network's input for latents."""
        run = self.fastguide_run
        scale = run.input_scale(timestep, sample.device)
        if run.relayed is not None:
            return self.fastguide_inner.scale_model_input(sample, timestep)
        return sample if scale == 1.0 else sample * scale

    def fastguide_step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The latents after one update; `model_output` is known already, unless the scheduler's
        own step is to take the guided one.
        """
        run, inner = self.fastguide_run, self.fastguide_inner
        if run.relayed is not None:
            return inner.step(model_output, timestep, sample, *args, **kwargs)

        def draw() -> Tensor:
            from diffusers.utils.torch_utils import randn_tensor

            upcast = "DPMSolverMultistep" in type(self).__name__
            dtype = torch.float32 if upcast else model_output.dtype
            return randn_tensor(sample.shape, kwargs.get("generator"), sample.device, dtype)

        latents = run.advance(sample, draw)
        if hasattr(inner, "_step_index"):
            inner._step_index = run.begin + run.row - 1
        return Step(latents) if kwargs.get("return_dict", True) else (latents,)


@dataclass(frozen=True)
class Step:
    """What a scheduler returns where a tuple is not asked for."""

    prev_sample: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return (self.prev_sample,)[index]


def network_of(inner: Any, run: Run) -> Any:
    """In the place of a network."""
    return _made(_class(Network, inner.__class__), inner, run)


def scheduler_of(inner: Any, run: Run) -> Any:
    """In the place of a scheduler."""
    return _made(_class(Scheduler, inner.__class__), inner, run)


def original(component: Any) -> Any:
    """What a component stands for: itself, mostly."""
    return getattr(component, INNER) if isinstance(component, (Network, Scheduler)) else component


def _made(cls: type, inner: Any, run: Run) -> Any:
    made: Any = object.__new__(cls)
    object.__setattr__(made, "__dict__", inner.__dict__)
    object.__setattr__(made, RUN, run)
    object.__setattr__(made, INNER, inner)
    return made


@functools.cache
def _class(mixin: Any, kind: Any) -> type:
    known: dict[str, Any] = {"__slots__": (RUN, INNER), "__module__": kind.__module__}
    if mixin is Scheduler:
        known["set_timesteps"] = _setting(kind)
        known["step"] = _stepping(kind)
    return type(kind.__name__, (mixin, kind), known)


def _setting(kind: Any) -> Callable[..., Any]:
    @functools.wraps(kind.set_timesteps)  # pipelines look at its signature
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.fastguide_run.reset()
        return kind.set_timesteps(self, *args, **kwargs)

    return set_timesteps


def _stepping(kind: Any) -> Callable[..., Any]:
    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fastguide_step(*args, **kwargs)

    return step
