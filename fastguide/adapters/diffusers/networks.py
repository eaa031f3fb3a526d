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
from fastguide.adapters.diffusers.look import what_is_on
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
    if not isinstance(net, nn.Module) or not hasattr(net, "config"):
        raise TypeError(
            f"net is a {type(net).__name__}, but it should be a network of diffusers, such as "
            "pipe.unet or pipe.transformer"
        )
    name = class_name(net)
    _check_channels(net, name)
    if name not in STAGED:
        return whole(net, time_scale_of(net, time_scale), f"fastguide has no stages for a {name}")
    staged, what_is_missing = STAGED[name]
    why = why_whole or what_is_missing(net) or what_is_on(net)
    if why is None:
        return staged(net, time_scale)
    told, why = time_scale_of(net, time_scale), f"the {name} cannot run in stages: {why}"
    return whole(net, told, why, Flux(net) if staged is Flux else None)


def _check_channels(net: Any, name: str) -> None:
    takes, returns = net.config.in_channels, getattr(net.config, "out_channels", None)
    told = blocks_of(net)
    if returns is None or takes <= returns or told.packed or told.extra:
        return
    raise ValueError(
        f"the {name} takes {takes} channels and returns {returns}; that its input holds more than "
        "latents (masks, images) fastguide understands of a UNet2DConditionModel and of Wan alone"
    )
