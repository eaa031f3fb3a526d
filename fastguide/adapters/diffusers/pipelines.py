"""A pipeline of diffusers under our guidance: the same class, the same call."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastguide.adapters.diffusers.calls import Gather
from fastguide.adapters.diffusers.network import Adapted
from fastguide.adapters.diffusers.networks import adapt
from fastguide.adapters.diffusers.run import Draws, Run
from fastguide.adapters.diffusers.schedulers import meaning_of
from fastguide.adapters.diffusers.whole import Whole
from fastguide.guidance.base import Guidance

NEGATIVE = 2.0  # any value of a pipeline's guidance scale that makes it run negative rows


@dataclass(frozen=True)
class Family:
    """How the pipelines of one family call their network.

    Args:
        net: the attribute that is the network.
        scale: the argument that turns on negative rows; None where there are none.
        null_first: whether negative rows come first.
        separate: whether they come in a call of their own.
        refused: arguments that change the prediction in ways that are not ours.
    """

    net: str
    scale: str | None = "guidance_scale"
    null_first: bool = True
    separate: bool = False
    refused: tuple[str, ...] = ()


_SD = Family("unet", refused=("guidance_rescale",))
_SD3 = Family("transformer", refused=("skip_guidance_layers",))
_FLUX = Family("transformer", "true_cfg_scale", separate=True)
_PLAIN = Family("unet", None)
_TEXT = Family("transformer")
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionControlNetPipeline": _SD,
    "StableDiffusionControlNetImg2ImgPipeline": _SD,
    "StableDiffusionControlNetInpaintPipeline": _SD,
    "StableDiffusionXLPipeline": _SD,
    "StableDiffusionXLImg2ImgPipeline": _SD,
    "StableDiffusionXLInpaintPipeline": _SD,
    "StableDiffusionXLControlNetPipeline": _SD,
    "StableDiffusionXLControlNetImg2ImgPipeline": _SD,
    "StableDiffusionXLControlNetInpaintPipeline": _SD,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "PixArtAlphaPipeline": _TEXT,
    "PixArtSigmaPipeline": _TEXT,
    "SanaPipeline": _TEXT,
    "DiTPipeline": Family("transformer", null_first=False),
    "DDPMPipeline": _PLAIN,
    "DDIMPipeline": _PLAIN,
}


def accelerate(
    pipe: Any, guidance: Guidance | None = None, compile: bool | Mapping[str, Any] = False
) -> Any:
    """See `fastguide.adapters.diffusers.accelerate`."""
    kind = type(pipe).__name__
    if isinstance(pipe, Accelerated):
        raise ValueError("pipe is accelerated already; give accelerate the original")
    if kind not in FAMILIES:
        raise ValueError(f"pipe is a {kind}, but it should be one of {', '.join(sorted(FAMILIES))}")
    if guidance is not None and not isinstance(guidance, Guidance):
        raise TypeError(f"guidance is {guidance!r}, but it should be a Guidance such as CFG(3.0)")
    family = FAMILIES[kind]
    inner = getattr(pipe, family.net)
    scheduler = copy.deepcopy(pipe.scheduler)  # from_config would drop what its pipeline mended
    net = adapt(inner, meaning_of(scheduler).time_scale)
    options = None if compile is False else ({} if compile is True else dict(compile))
    run = Run(net, scheduler, guidance, family.null_first, family.separate, options)
    if run.needs_negative and family.scale is None:
        raise ValueError(f"guidance needs a negative condition, but a {kind} has none")
    distilled = getattr(inner.config, "time_cond_proj_dim", None) is not None
    if run.needs_negative and distilled:
        raise ValueError(
            "guidance needs a negative condition, but the network has its guidance built in "
            "(time_cond_proj_dim), and its pipeline runs no negative rows"
        )
    for layers in _layers_of(guidance):
        run._choose(layers)
    made: Any = object.__new__(type(kind, (Accelerated, type(pipe)), {}))
    made.__dict__.update(pipe.__dict__)
    network = made.__dict__[family.net] = Network(net, run)
    made.__dict__["scheduler"] = Scheduler(scheduler, run)
    signature = inspect.signature(type(pipe).__call__)
    made.__dict__["_fastguide"] = Parts(run, network, family, distilled, signature)
    return made


def _layers_of(guidance: Guidance | None) -> list[Any]:
    if guidance is None:
        return []
    branches = [term.branch for term in guidance.terms()]
    found = [b.layers for b in branches if b.layers]
    found += [b.degraded.layers for b in branches if b.degraded and b.degraded.layers]
    return found + [one.layers for one in guidance.inside()]


@dataclass(frozen=True)
class Parts:
    """What an accelerated pipeline holds of ours, and the signature of its own call."""

    run: Run
    network: Network
    family: Family
    distilled: bool
    signature: inspect.Signature


class Accelerated:
    """What an accelerated pipeline is beside its own class."""

    _fastguide: Parts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        parts = self._fastguide
        run, family, distilled = parts.run, parts.family, parts.distilled
        method = super().__call__  # type: ignore[misc]
        given = parts.signature.bind_partial(self, *args, **kwargs).arguments
        _refuse(given, family, distilled, run)
        if family.scale is not None and not (distilled and family.scale == "guidance_scale"):
            kwargs[family.scale] = NEGATIVE if run.needs_negative else 1.0
        if family.separate and run.needs_negative and given.get("negative_prompt") is None:
            if given.get("negative_prompt_embeds") is None and given.get("prompt") is None:
                raise ValueError(
                    "negative_prompt_embeds is None, but guidance needs a negative condition"
                )
            if given.get("negative_prompt_embeds") is None:
                kwargs["negative_prompt"] = ""
        run.draws = Draws(
            _seed(given.get("generator")),
            float(given.get("eta") or 0.0),
            bool(given.get("use_clipped_model_output")),
        )
        run.reset()
        try:
            return method(*args, **kwargs)
        finally:
            run.reset()
            parts.network.forget()


def _refuse(given: Mapping[str, Any], family: Family, distilled: bool, run: Run) -> None:
    scale = family.scale or ""
    if scale in given and not distilled:
        raise ValueError(
            f"{scale} is {given[scale]}, but the guidance is given to accelerate: "
            f"it is {run.guidance!r}"
        )
    for name in family.refused:
        if given.get(name):
            raise ValueError(f"{name} is {given[name]}, which fastguide does not support")


def _seed(generator: Any) -> int:
    """A number that layers draw by, without drawing from the generator."""
    first = generator[0] if isinstance(generator, (list, tuple)) and generator else generator
    return int(first.initial_seed() if first is not None else torch.initial_seed()) & (2**62 - 1)


class Network(nn.Module):
    """What a pipeline calls as its network: evaluates all branches, and returns zeros, because its
    scheduler knows the predictions already. Everything else is the network's own.
    """

    def __init__(self, adapted: Adapted | Whole, run: Run) -> None:
        super().__init__()
        self.inner = adapted.net
        known = {"run": run, "adapted": adapted, "gather": Gather(adapted), "nothing": (None, None)}
        self.__dict__.update(known)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = self.gather(args, kwargs)
        x = call.x
        self.run.evaluate(call)
        like, nothing = self.nothing
        if x.shape != like:
            shape = (x.shape[0], x.shape[1] * self.adapted.outputs, *x.shape[2:])
            nothing = x.new_zeros(()).expand(shape)
            self.__dict__["nothing"] = x.shape, nothing
        return Output(nothing) if kwargs.get("return_dict", True) else (nothing,)

    def forget(self) -> None:
        """Hold nothing of a run."""
        self.gather.forget()
        self.__dict__["nothing"] = None, None

    @property
    def config(self) -> Any:
        """The network's own."""
        return self.inner.config

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@dataclass(frozen=True)
class Output:
    """What a network returns where a tuple is not asked for."""

    sample: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return (self.sample,)[index]


class Scheduler:
    """What a pipeline calls as its scheduler: the updates are ours, the rest is its own's."""

    def __init__(self, inner: Any, run: Run) -> None:
        self.inner, self.run = inner, run
        self.counts = hasattr(inner, "_step_index")

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "run"):
            raise AttributeError(name)
        value = getattr(self.inner, name)
        return self._setting(value) if name == "set_timesteps" else value

    def _setting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            self.run.reset()
            return method(*args, **kwargs)

        return set_timesteps

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *_: Any, **__: Any) -> Tensor:
        """The network's input for latents."""
        scale = self.run.input_scale(timestep, sample.device)
        return sample if scale == 1.0 else sample * scale

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """The latents after one update; `model_output` is known already."""

        def draw() -> Tensor:
            from diffusers.utils.torch_utils import randn_tensor

            upcast = "DPMSolverMultistep" in type(self.inner).__name__
            dtype = torch.float32 if upcast else model_output.dtype
            return randn_tensor(sample.shape, generator, sample.device, dtype)

        latents = self.run.advance(sample, draw)
        if self.counts:
            self.inner._step_index = self.run.begin + self.run.row - 1
        return Step(latents) if return_dict else (latents,)


@dataclass(frozen=True)
class Step:
    """What a scheduler returns where a tuple is not asked for."""

    prev_sample: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return (self.prev_sample,)[index]
