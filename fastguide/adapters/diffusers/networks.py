"""Which adapter a diffusers network gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastguide.adapters.diffusers import pixart, unet, unet_condition
from fastguide.adapters.diffusers.by_blocks import time_scale_of, whole
from fastguide.adapters.diffusers.dit import DiT
from fastguide.adapters.diffusers.flux import Flux
from fastguide.adapters.diffusers.network import Adapted, class_name
from fastguide.adapters.diffusers.pixart import PixArt, Sana
from fastguide.adapters.diffusers.sd3 import SD3
from fastguide.adapters.diffusers.unet import UNet
from fastguide.adapters.diffusers.unet_condition import UNetCondition
from fastguide.adapters.diffusers.whole import Whole

_PLAIN_PROCESSORS = {
    *("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "FusedAttnProcessor2_0"),
    *("IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0"),
    *("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0", "XFormersJointAttnProcessor"),
    *("FluxAttnProcessor", "FusedFluxAttnProcessor2_0"),
    *("SanaLinearAttnProcessor2_0", "SanaAttnProcessor2_0"),
}


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


def adapt(net: nn.Module, time_scale: float = 1.0) -> Adapted | Whole:
    """The network in our contract: in stages where we know it, else as one.

    Raises:
        TypeError: `net` is no diffusers network.
        ValueError: it is offloaded, which we would pass by.
    """
    if not isinstance(net, nn.Module) or not hasattr(net, "config"):
        raise TypeError(
            f"net is a {type(net).__name__}, but it should be a network of diffusers, such as "
            "pipe.unet or pipe.transformer"
        )
    if any(hasattr(module, "_hf_hook") for module in net.modules()):
        raise ValueError(
            f"the {type(net).__name__} is offloaded by hooks (enable_model_cpu_offload or "
            "enable_sequential_cpu_offload), which fastguide does not support"
        )
    name = class_name(net)
    if name not in STAGED:
        return whole(net, time_scale_of(net, time_scale), f"fastguide has no stages for a {name}")
    staged, what_is_missing = STAGED[name]
    why = _unknown_processor(net) or what_is_missing(net)
    _check_channels(net, name, why)
    if why is None:
        return staged(net, time_scale)
    return whole(net, time_scale, f"the {name} cannot run in stages: {why}")


def _check_channels(net: Any, name: str, why: str | None) -> None:
    takes, returns = net.config.in_channels, net.config.out_channels
    if returns is None or takes <= returns or (name == "UNet2DConditionModel" and why is None):
        return
    what = "a UNet2DConditionModel" if why is None else f"stages, but {why}"
    raise ValueError(
        f"the {name} takes {takes} channels and returns {returns}; that its input holds more than "
        f"latents (masks, images) fastguide understands only of {what}"
    )


def _unknown_processor(net: nn.Module) -> str | None:
    for module in net.modules():
        processor = getattr(module, "processor", None)
        if processor is not None and type(processor).__name__ not in _PLAIN_PROCESSORS:
            return f"it has the attention processor {type(processor).__name__}"
    return None
