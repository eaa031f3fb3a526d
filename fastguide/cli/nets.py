"""The networks that `fastguide train` makes, from its options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

    from fastguide.nets import DiT, UNet
    from fastguide.process import EDM, VP, Flow, Prediction
    from fastguide.training import Images, Recipe

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


def make_process(prediction: str, betas: str) -> VP | EDM | Flow:
    """The process that the networks with this prediction are trained on."""
    from fastguide.process import EDM, VP, Flow

    if prediction == "flow":
        return Flow()
    return EDM() if prediction == "edm" else VP(betas)  # type: ignore[arg-type]


def make_dit(
    images: Images,
    process: VP | EDM | Flow,
    prediction: Prediction,
    width: int,
    depth: int,
    patch: int,
    attention_heads: int,
    irrelevant: float | None,
    negative: float,
    dropout: float,
    split: bool,
    unconditional: bool,
) -> tuple[DiT, Recipe]:
    """A DiT and the recipe that teaches it as many heads as the options ask for."""
    from fastguide.nets import DiT
    from fastguide.training import Recipe

    if unconditional:
        split, irrelevant, dropout = False, 0.0, 0.0
    if irrelevant is None:
        irrelevant = 0.0 if split else 0.1
    second = split or irrelevant > 0
    net = DiT(
        channels=images.pixels.shape[1],
        patch=patch,
        width=width,
        depth=depth,
        attention_heads=attention_heads,
        classes=0 if unconditional else len(images.class_names),
        heads=2 if second else 1,
        negative=second and negative > 0,
        split=split,
        time_scale=time_scale(process, prediction),
    )
    return net, Recipe(irrelevant, negative if second else 0.0, dropout)


def make_unet(
    images: Images,
    process: VP | EDM | Flow,
    prediction: Prediction,
    width: int,
    multipliers: str,
    res_blocks: int,
    attention: str,
    head_channels: int,
    variance: bool,
    dropout: float,
    unconditional: bool,
) -> tuple[UNet, Recipe]:
    """A U-Net and the recipe that leaves the condition out of some rows."""
    from fastguide.nets import UNet
    from fastguide.training import Recipe

    net = UNet(
        channels=images.pixels.shape[1],
        width=width,
        multipliers=numbers("multipliers", multipliers),
        res_blocks=res_blocks,
        attention=numbers("attention", attention),
        head_channels=head_channels,
        classes=0 if unconditional else len(images.class_names),
        variance=variance,
        time_scale=time_scale(process, prediction),
    )
    return net, Recipe(dropout=0.0 if unconditional else dropout)


def time_scale(process: VP | EDM | Flow, prediction: Prediction) -> float:
    """What brings the network's time to steps of about 1: it is log(sigma / alpha), flow's time or
    a timestep.
    """
    from fastguide.process import Flow

    if prediction.log_time is not None:
        return 62.5 / prediction.log_time
    return 1000.0 if isinstance(process, Flow) else 1.0


def numbers(argument: str, text: str) -> tuple[int, ...]:
    """ "1,2,2" to (1, 2, 2); "" to ()."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"{argument} is {text!r}, but it should be whole numbers, as in 1,2,2")
    return tuple(int(part) for part in parts)
