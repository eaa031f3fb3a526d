"""Calls with arguments that there are not: answered with those that there are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from fastguide.common.checks import did_you_mean

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Class = TypeVar("Class", bound=type)

# what others call it, and how it is said here
OTHERS: Mapping[str, str] = {
    "generator": "seeds, one int per sample, as in seeds=[0, 1, 2]",
    "seed": "seeds, one int per sample, as in seeds=[0, 1, 2]",
    "num_inference_steps": "steps, as in steps=25",
    "num_steps": "steps, as in steps=25",
    "guidance_scale": "guidance, as in guidance=fastguide.CFG(3.0)",
    "cfg_scale": "guidance, as in guidance=fastguide.CFG(3.0)",
    "scheduler": "solver, as in solver=fastguide.ddim",
    "sampler": "solver, as in solver=fastguide.ddim",
    "sampler_name": "solver, as in solver=fastguide.ddim",
    "sigmas": "levels, as in levels=fastguide.Levels.from_sigmas(model.process, sigmas)",
    "timesteps": "levels, as in levels=fastguide.Levels.from_times(model.process, times)",
    "latents": "noise, the standard normals that a run starts from",
    "labels": "cond, as in cond=[0, 1, 2]",
    "class_labels": "cond, as in cond=[0, 1, 2]",
    "classes": "cond, as in cond=[0, 1, 2]",
    "prompt": "cond, what the network takes as its condition",
    "negative_prompt": "negative, in the form of cond",
    "image": "init, with strength=0.6",
    "mask_image": "mask, with known=image",
    "batch_size": "seeds, one int per sample, as in seeds=range(4)",
    "num_images_per_prompt": "seeds, one int per sample, as in seeds=range(4)",
    "height": "shape, as in shape=(3, height, width)",
    "width": "shape, as in shape=(3, height, width)",
    "clip_denoised": "clamp, as in clamp=1.0",
    "callback_on_step_end": "callback, which is called with a Progress",
    "torch_dtype": "dtype, as in dtype='bf16'",
}


def answering(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function, a method or an `__init__`, of which wrong calls say what is right."""
    signature = inspect.signature(function)
    known = frozenset(signature.parameters)

    @wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not known.issuperset(kwargs):
            raise TypeError(_unknown(function, signature, kwargs))
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(_misfit(function, signature, str(error))) from None
        return function(*args, **kwargs)

    return called


def answering_class(cls: Class) -> Class:
    """A class, of which wrong calls say what is right."""
    made: Any = cls
    made.__init__ = answering(made.__init__)
    return cls


def _unknown(
    function: Callable[..., Any], signature: inspect.Signature, given: Mapping[str, Any]
) -> str:
    known = [name for name in signature.parameters if name != "self"]
    key = next(name for name in given if name not in known)
    right = OTHERS.get(key, "")
    hint = did_you_mean(key, known)
    if right.partition(",")[0] in known:
        hint = f"; here that is {right}"
    if not hint and key == "guidance_scale" and "scale" in known:
        hint = "; here that is scale"
    return f"{_name(function)} has no argument {key!r}, only {', '.join(known)}{hint}"


def _misfit(function: Callable[..., Any], signature: inspect.Signature, error: str) -> str:
    call = _call(function, signature)
    if "too many positional" in error:
        return f"{_name(function)} has too many arguments without a name; call it as {call}"
    what = "twice" if "multiple" in error else "missing"
    return f"{error.rpartition(' ')[2].strip(chr(39))} is {what}; call it as {call}"


def _name(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__").removesuffix(".__call__")


def _call(function: Callable[..., Any], signature: inspect.Signature) -> str:
    """The call with what must be given."""
    parameters = [one for name, one in signature.parameters.items() if name != "self"]
    needed = [one.name for one in parameters if one.default is inspect.Parameter.empty]
    rest = ", ..." if len(needed) < len(parameters) else ""
    return f"{_name(function)}({', '.join(needed)}{rest})"
