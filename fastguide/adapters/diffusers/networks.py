"""Which adapter a diffusers network gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastguide.adapters.diffusers import pixart, unet, unet_condition
from fastguide.adapters.diffusers.blocks import blocks_of
from fastguide.adapters.diffusers.by_blocks import time_scale_of, whole
from fastguide.adapters.diffusers.dit import DiT
from fastguide.adapters.diffusers.flux import Flux
from fastguide.adapters.diffusers.look import structure, what_is_on
from fastguide.adapters.diffusers.network import Adapted, class_name
from fastguide.adapters.diffusers.pixart import PixArt, Sana
from fastguide.adapters.diffusers.sd3 import SD3
from fastguide.adapters.diffusers.unet import UNet
from fastguide.adapters.diffusers.unet_condition import UNetCondition
from fastguide.adapters.diffusers.whole import Whole


def _nothing(net: Any) -> str | None:
    return None


STAGED: dict[str, tuple[type[Adapted], Callable[[Any], str | None]]] = {
    "UNet2DModel": (UNet, unet.what_is_missing),
    "UNet2DConditionModel": (UNetCondition, unet_condition.what_is_missing),
    "DiTTransformer2DModel": (DiT, _nothing),
    "PixArtTransformer2DModel": (PixArt, pixart.what_is_missing),
    "SD3Transformer2DModel": (SD3, _nothing),
    "FluxTransformer2DModel": (Flux, _nothing),
    "SanaTransformer2DModel": (Sana, _nothing),
}


def adapt(net: nn.Module, time_scale: float = 1.0, why_whole: str | None = None) -> Adapted | Whole:
    """The network in our contract: in stages where we know it and nothing on its modules is passed
    by, else as one; or as one for the reason `why_whole`.

    Raises:
        TypeError: `net` is no diffusers network.
    """
    return made(net, time_scale, why_not_staged(net, why_whole))


def why_not_staged(net: nn.Module, why_whole: str | None = None) -> str | None:
    """Why the network cannot run in stages as it is now; None where it can.

    Raises:
        TypeError: `net` is no diffusers network.
    """
    if not isinstance(net, nn.Module) or not hasattr(net, "config"):
        raise TypeError(
            f"net is a {type(net).__name__}, but it should be a network of diffusers, such as "
            "pipe.unet or pipe.transformer"
        )
    name = class_name(net)
    _check_channels(net, name)
    if name not in STAGED:
        return f"fastguide has no stages for a {name}"
    why = why_whole or STAGED[name][1](net) or what_is_on(net)
    return None if why is None else f"the {name} cannot run in stages: {why}"


def made(net: nn.Module, time_scale: float, why: str | None) -> Adapted | Whole:
    """The network in stages, or by its modules for the reason `why`."""
    staged = STAGED.get(class_name(net), (None,))[0]
    found: Adapted | Whole
    if why is None:
        assert staged is not None
        found = staged(net, time_scale)
    else:
        layout = Flux(net) if staged is Flux else None
        found = whole(net, time_scale_of(net, time_scale), why, layout)
    found.made_from = (time_scale, why, structure(net))
    return found


def as_it_is(adapted: Adapted | Whole) -> Adapted | Whole:
    """The same, or another of its network where something was put on that, or taken off, since."""
    time_scale, why, modules = adapted.made_from
    now = why_not_staged(adapted.net)
    if now == why and structure(adapted.net) == modules:
        return adapted
    return made(adapted.net, time_scale, now)


def _check_channels(net: Any, name: str) -> None:
    takes, returns = net.config.in_channels, getattr(net.config, "out_channels", None)
    told = blocks_of(net)
    if returns is None or takes <= returns or told.extra:
        return
    if told.packed and takes == returns * getattr(net.config, "patch_size", 1) ** 2:
        return  # a token is told as a patch's channels on its way in, as a pixel's on its way out
    raise ValueError(
        f"the {name} takes {takes} channels and returns {returns}; that its input holds more than "
        "latents (masks, images) fastguide understands of a UNet2DConditionModel and of Wan alone"
    )
