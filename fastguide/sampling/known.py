"""What a call says of its images: those that it starts from, and those that are partly known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastguide import ops
from fastguide.common.arrays import as_tensor
from fastguide.common.checks import shown
from fastguide.engine.known import Known, Measurement
from fastguide.sampling.planning import Planned

TOLERANCE = 1e-4  # of a projection that is done twice, beside once


def as_image(planned: Planned, name: str, image: Any, batch: int) -> Tensor:
    """An image for all samples `[*shape]`, or one for each, as fp32 `[B, *shape]` on the device.

    Raises:
        ValueError, TypeError: it is not as above.
    """
    shape = planned.setup.settings.shape
    image = as_tensor(image)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"{name} is {shown(image)}, but it should be a tensor or an array {('B', *shape)}"
        )
    if image.shape not in (torch.Size(shape), (batch, *shape)) or not image.is_floating_point():
        raise ValueError(
            f"{name} is {image.dtype} of shape {tuple(image.shape)}, but it should be floats "
            f"{(batch, *shape)} or {shape}"
        )
    return image.to(planned.setup.device, torch.float32).expand(batch, *shape).contiguous()


def as_init(planned: Planned, init: Tensor | None, batch: int) -> Tensor | None:
    """The image that a run starts from.

    Raises:
        ValueError: it is given, but the run starts from noise, or the other way round.
    """
    strength = planned.course.strength
    if planned.plan.from_image and init is None:
        raise ValueError(f"strength is {strength}, but the run has no init to start from")
    if init is None:
        return None
    if not planned.plan.from_image:
        raise ValueError("init is given, but strength, which says how far it is noised, is None")
    return as_image(planned, "init", init, batch)


def as_known(
    planned: Planned,
    known: Tensor | None,
    mask: Tensor | None,
    measurement: Measurement | None,
    batch: int,
) -> Known | None:
    """What is known of the samples, from the arguments of a call.

    Raises:
        ValueError, TypeError: one that is not as `fastguide.Sampler` says; or a measurement that is
            no projection, or that gives another shape.
    """
    if known is None:
        for name, value in (("mask", mask), ("measurement", measurement)):
            if value is not None:
                raise ValueError(f"{name} is given, but not the known image that it is a part of")
        return None
    if (mask is None) == (measurement is None):
        raise ValueError("known is given, but it needs either a mask or a measurement")
    image = as_image(planned, "known", known, batch)
    if not bool(image.isfinite().all()):
        raise ValueError("known has values that are not finite")
    if mask is not None:
        return Known(image, mask=_as_mask(planned, mask, batch))
    if not callable(measurement):
        raise TypeError(f"measurement is {measurement!r}, but it should be callable")
    once = measurement(image)
    if not isinstance(once, Tensor) or once.shape != image.shape:
        found = tuple(once.shape) if isinstance(once, Tensor) else repr(once)
        raise ValueError(f"measurement returned {found}, but it should be {tuple(image.shape)}")
    off = (measurement(once) - once).abs().max()
    if not bool(off <= TOLERANCE * once.abs().max().clamp(min=1.0)):
        raise ValueError(
            f"measurement, done twice, differs by {float(off):.3g} from once, but it should be a "
            "projection, such as fastguide.grey or fastguide.pooled(4)"
        )
    _check_symmetric(measurement, batch, image)
    return Known(image, measurement=measurement)


def _check_symmetric(measurement: Measurement, batch: int, image: Tensor) -> None:
    """Raise ValueError unless `<P x, y> = <x, P y>` for two random images, as of an orthogonal
    projection: another one moves what it should leave.
    """
    one, other = (ops.noise(range(batch), image.shape[1:], k, image.device) for k in (1, 2))
    sides = [(measurement(a) * b).double().sum() for a, b in ((one, other), (other, one))]
    off = (sides[0] - sides[1]).abs()
    if not bool(off <= TOLERANCE * image.numel() ** 0.5):
        raise ValueError(
            f"measurement is a projection, but not an orthogonal one: <P x, y> and <x, P y> of two "
            f"random images differ by {float(off):.3g}. Such are fastguide.grey or "
            "fastguide.pooled(4)"
        )


def _as_mask(planned: Planned, mask: Tensor, batch: int) -> Tensor:
    shape = (batch, *planned.setup.settings.shape)
    mask = as_tensor(mask)
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask is {shown(mask)}, but it should be a tensor or an array")
    found = mask.to(planned.setup.device, torch.float32)
    try:
        fits = torch.broadcast_shapes(found.shape, shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"mask.shape is {tuple(mask.shape)}, but it should broadcast to {shape}")
    if not bool(((found >= 0.0) & (found <= 1.0)).all()):
        raise ValueError("mask has values outside [0, 1]; 1 is what is known, 0 what is sampled")
    return found
