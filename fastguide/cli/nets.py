"""The networks that `fastguide train` makes, from its options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

    from fastguide.nets import DiT, UNet
    from fastguide.process import Noising, Prediction
    from fastguide.training import Images, Recipe
    from fastguide.training.trainable import Denoiser


@dataclass(frozen=True)
class NetOptions:
    """What `fastguide train` makes.

    Args:
        net: dit, a transformer, or unet, the U-Net of ADM.
        width: of the network: dit 192, unet 64.
        depth: dit: blocks.
        patch: dit: pixels a side of a token.
        attention_heads: dit: heads a block.
        multipliers: unet: each level's channels, in widths; a level halves the size.
        res_blocks: unet: residual blocks a level.
        attention: unet: which levels attend: how many times smaller they are.
        head_channels: unet: channels of an attention head.
        variance: unet: learn the variance too, for ddpm:variance=learned.
        irrelevant: dit: share of rows with an irrelevant condition; 0.1, 0 where split.
        negative: dit: share of rows with a negative condition.
        dropout: share of rows without a condition.
        split: dit: keep the second head from the condition by construction.
        unconditional: no condition at all.
    """

    net: str = "dit"
    width: int | None = None
    depth: int = 6
    patch: int = 4
    attention_heads: int = 6
    multipliers: tuple[int, ...] = (1, 2, 2)
    res_blocks: int = 2
    attention: tuple[int, ...] = (2, 4)
    head_channels: int = 64
    variance: bool = False
    irrelevant: float | None = None
    negative: float = 0.1
    dropout: float = 0.1
    split: bool = True
    unconditional: bool = False


OPTIONS = {
    "dit": ("depth", "patch", "attention_heads", "irrelevant", "negative", "split"),
    "unet": ("multipliers", "res_blocks", "attention", "head_channels", "variance"),
}


def check_options(net: str, given: Iterable[str]) -> None:
    """Raise ValueError unless `net` is a network and none of the options `given` is another's."""
    if net not in OPTIONS:
        raise ValueError(f"net is {net!r}, but it should be one of {', '.join(OPTIONS)}")
    for name in given:
        for other, options in OPTIONS.items():
            if other != net and name in options:
                option = name.replace("_", "-")
                raise ValueError(f"{option} is an option of net {other!r}, but net is {net!r}")


def given(context: typer.Context, name: str) -> bool:
    """Whether the option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def make_process(prediction: str, betas: str) -> Noising:
    """The process that the networks with this prediction are trained on."""
    from fastguide.process import EDM, VP, Flow

    if prediction == "flow":
        return Flow()
    return EDM() if prediction == "edm" else VP(betas)  # type: ignore[arg-type]


def make_network(
    options: NetOptions, images: Images, process: Noising, prediction: Prediction
) -> tuple[Denoiser, Recipe]:
    """The network, and the recipe that teaches it what the options ask for."""
    classes = 0 if options.unconditional else len(images.class_names)
    known = (images.pixels.shape[1], classes, time_scale(process, prediction))
    return (_dit if options.net == "dit" else _unet)(options, *known)


def _dit(options: NetOptions, channels: int, classes: int, time_scale: float) -> tuple[DiT, Recipe]:
    """A DiT with as many heads as are asked for."""
    from fastguide.nets import DiT
    from fastguide.training import Recipe

    split, irrelevant, dropout = options.split, options.irrelevant, options.dropout
    if options.unconditional:
        split, irrelevant, dropout = False, 0.0, 0.0
    if irrelevant is None:
        irrelevant = 0.0 if split else 0.1
    second = split or irrelevant > 0
    net = DiT(
        channels=channels,
        patch=options.patch,
        width=192 if options.width is None else options.width,
        depth=options.depth,
        attention_heads=options.attention_heads,
        classes=classes,
        heads=2 if second else 1,
        negative=second and options.negative > 0,
        split=split,
        time_scale=time_scale,
    )
    return net, Recipe(irrelevant, options.negative if second else 0.0, dropout)


def _unet(
    options: NetOptions, channels: int, classes: int, time_scale: float
) -> tuple[UNet, Recipe]:
    """A U-Net, for which the condition is left out of some rows."""
    from fastguide.nets import UNet
    from fastguide.training import Recipe

    net = UNet(
        channels=channels,
        width=64 if options.width is None else options.width,
        multipliers=options.multipliers,
        res_blocks=options.res_blocks,
        attention=options.attention,
        head_channels=options.head_channels,
        classes=classes,
        variance=options.variance,
        time_scale=time_scale,
    )
    return net, Recipe(dropout=options.dropout if classes else 0.0)


def time_scale(process: Noising, prediction: Prediction) -> float:
    """What brings the network's time to steps of about 1: it is log(sigma / alpha), flow's time or
    a timestep.
    """
    from fastguide.process import Flow

    if prediction.log_time is not None:
        return 62.5 / prediction.log_time
    return 1000.0 if isinstance(process, Flow) else 1.0
