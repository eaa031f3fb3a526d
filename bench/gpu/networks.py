"""Networks of published sizes with random weights, for benchmarks of speed.

Each returns twice as many channels as x has, so that the same one serves all methods: the second
half is a learned variance, which DDIM does not read, or the second head of superconditioning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from shapes import SD, SDXL, Shape, TextUNet
from shapes import TINY as TINY_SHAPE
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import fastguide as fg
from fastguide.nets import DiT, UNet

CLASSES, TOKENS = 1000, 77


@dataclass(frozen=True)
class Network:
    """A kind of network.

    Args:
        make: with random weights, on the default device.
        shape: of one sample.
        betas: of its process.
        text: the `Shape` of a network that reads text; else its condition is a class.
        flops: of one row, about, for estimates of the time.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    betas: str = "linear"
    text: Shape | None = None
    flops: float = 1e9


def dit(width: int, depth: int, heads: int) -> Callable[[], nn.Module]:
    """A DiT of patches of 2 x 2, times in training steps."""
    return lambda: DiT(4, 2, width, depth, heads, classes=CLASSES, heads=2, time_scale=1.0)


def adm() -> nn.Module:
    """The U-Net of ADM at 64 x 64."""
    levels = {"multipliers": (1, 2, 3, 4), "res_blocks": 3, "attention": (2, 4, 8)}
    return UNet(3, 192, **levels, classes=CLASSES, variance=True, time_scale=1.0)


def tiny_unet() -> nn.Module:
    """Two levels."""
    levels = {"multipliers": (1, 2), "res_blocks": 1, "attention": (2,)}
    small = {"head_channels": 16, "groups": 8, "classes": CLASSES}
    return UNet(3, 32, **levels, **small, variance=True, time_scale=1.0)


def text_unet(shape: Shape) -> Callable[[], nn.Module]:
    """A `TextUNet` with two outputs."""
    return lambda: TextUNet(shape, outputs=2)


NETWORKS = {
    "DiT-S/2": Network(dit(384, 12, 6), (4, 32, 32), flops=12e9),
    "DiT-XL/2": Network(dit(1152, 28, 16), (4, 32, 32), flops=237e9),
    "ADM-64": Network(adm, (3, 64, 64), flops=208e9),
    "SD": Network(text_unet(SD), (4, 64, 64), "scaled_linear", SD, 800e9),
    "SDXL": Network(text_unet(SDXL), (4, 128, 128), "scaled_linear", SDXL, 6e12),
}
TINY = {
    "DiT-S/2": Network(dit(32, 3, 4), (4, 8, 8)),
    "DiT-XL/2": Network(dit(64, 3, 4), (4, 8, 8)),
    "ADM-64": Network(tiny_unet, (3, 8, 8)),
    "SD": Network(
        text_unet(replace(TINY_SHAPE, added=0)),
        (4, 8, 8),
        "scaled_linear",
        replace(TINY_SHAPE, added=0),
    ),
    "SDXL": Network(text_unet(TINY_SHAPE), (4, 8, 8), "scaled_linear", TINY_SHAPE),
}


def build(network: Network, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The network for inference, with random weights that keep the size of what goes through, so
    that its predictions matter and depend on all of it.
    """
    with torch.device(device):
        net = network.make()
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                fan_in = 1 if isinstance(module, nn.Embedding) else parameter[0].numel()
                nn.init.normal_(parameter, std=fan_in**-0.5)
            elif name == "bias":
                nn.init.normal_(parameter, std=0.1)
    return net.to(dtype).eval().requires_grad_(False)


def conditions(network: Network, batch: int, device: torch.device, dtype: torch.dtype) -> Any:
    """(the condition of `batch` samples, the null condition of one without the batch)."""
    if network.text is None:
        return torch.arange(batch, device=device) % CLASSES, CLASSES
    widths = [(TOKENS, network.text.context)]
    widths += [(network.text.added,)] if network.text.added else []
    given = tuple(torch.randn(batch, *width, device=device, dtype=dtype) for width in widths)
    null = tuple(torch.randn(width, device=device, dtype=dtype) for width in widths)
    return (given, null) if len(widths) > 1 else (given[0], null[0])


def null_of(null: Any, batch: int, device: torch.device) -> Any:
    """The null condition of `batch` samples."""
    if isinstance(null, int):
        return torch.full((batch,), null, device=device)

    def expanded(one: Tensor) -> Tensor:
        return one.expand(batch, *one.shape)

    return tree_map(expanded, null)


def model_of(network: Network, net: Any, null: Any, heads: int = 1) -> fg.Model:
    """It predicts eps, and a variance or, with two heads, the unconditional eps."""
    process = fg.VP(network.betas)
    kind = {"heads": 2} if heads == 2 else {"variance": True}
    return fg.Model(net, process, fg.Prediction("eps"), network.shape, null, **kind)
