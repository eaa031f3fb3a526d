"""What a sampler is given, checked and made ready once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import nn

from fastguide.common.arrays import DTYPES, as_device, as_dtype
from fastguide.common.checks import check_bool, check_int, check_name, check_number, shown
from fastguide.engine.captured import Way
from fastguide.engine.program import RowMode
from fastguide.guidance.base import Guidance, Other
from fastguide.model import Model


def check_shape(model: Model, shape: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one sample, the model's where None is given."""
    if shape is not None:
        if not isinstance(shape, Sequence) or isinstance(shape, str):
            raise TypeError(f"shape is {shown(shape)}, but the model samples {model.shape}")
        for i, side in enumerate(shape):
            check_int(f"shape[{i}]", side)
    chosen = model.shape if shape is None else tuple(map(int, shape))
    if len(chosen) != len(model.shape) or chosen[0] != model.shape[0] or min(chosen) < 1:
        raise ValueError(f"shape is {chosen}, but the model samples {model.shape}")
    check = getattr(model.net, "check_shape", None)
    if check is not None:
        check(chosen)
    return chosen


def check_images(shape: tuple[int, ...], guidance: Guidance | None) -> None:
    """Raise ValueError where the guidance filters images, but samples are none."""
    for term in guidance.terms() if guidance is not None else ():
        name = "SAG" if term.branch.degraded else "FDG" if term.branch.high_pass else None
        if name is not None and len(shape) != 3:
            raise ValueError(
                f"guidance holds {name}, which filters images (C, H, W), but the shape of a "
                f"sample is {shape}"
            )


def device_of(model: Model, device: torch.device | str | None) -> torch.device:
    """Where to run: where the network is."""
    parameter = model.parameter
    if parameter is None:
        return as_device("cpu" if device is None else device)
    wanted = parameter.device if device is None else as_device(device)
    if wanted.type != parameter.device.type or wanted.index not in (None, parameter.device.index):
        raise ValueError(f"device is {device}, but the network is on {parameter.device}")
    return parameter.device


def net_as(model: Model, dtype: torch.dtype | str | None) -> tuple[Any, torch.dtype]:
    """The network of that dtype, a copy where its own differs, and the dtype."""
    dtype = None if dtype is None else as_dtype(dtype)
    parameter = model.parameter
    if parameter is None:
        return model.net, dtype or torch.float32
    if dtype is None and parameter.dtype not in DTYPES.values():
        raise ValueError(
            f"model.net is of {parameter.dtype}, but a sampler runs in fp32, bf16 or fp16: "
            "name one as dtype"
        )
    if dtype is None or dtype == parameter.dtype:
        return model.net, parameter.dtype
    assert isinstance(model.net, nn.Module)
    return copy.deepcopy(model.net).to(dtype), dtype


def others_of(model: Model, guidance: Guidance | None, device: torch.device) -> tuple[Other, ...]:
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


def check_rows(rows: RowMode | None) -> None:
    """Raise for `rows` of a sampler that is no way to run them."""
    if rows is not None:
        check_name("rows", rows, get_args(RowMode))


def check_packing(max_batch: int, max_wait: float) -> None:
    """Raise for what a sampler cannot pack requests with."""
    check_int("max_batch", max_batch)
    check_number("max_wait", max_wait, 0.0)


def check_graph(graph: bool | Way, max_captures: int, fallback: bool, device: torch.device) -> None:
    """Raise for `graph` of a sampler that is no way to capture, or not on `device`, and for what
    goes with it.
    """
    if not isinstance(graph, bool):
        check_name("graph", graph, (*get_args(Way),))
    if graph and device.type != "cuda":
        raise ValueError(f"graph is {graph!r}, but the sampler runs on {device}, not on a GPU")
    check_int("max_captures", max_captures)
    check_bool("fallback", fallback)


def check_call(callback: Any, check: bool) -> None:
    """Raise for what a call is to do beside sampling, unless it can be done."""
    if callback is not None:
        check_callback(callback)
    check_bool("check", check)


def check_callback(callback: Any) -> None:
    """Raise TypeError unless `callback` can be called with one argument, a `Progress`."""
    wanted = "but it is called with one argument, a fastguide.Progress: callback(progress)"
    if not callable(callback):
        raise TypeError(f"callback is {shown(callback)}, {wanted}")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # of C, which say nothing
        return
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(f"callback is {shown(callback)} with {signature}, {wanted}") from None
