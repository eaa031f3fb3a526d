"""The networks that `fastguide train` makes, from its options."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastguide.nets import DiT, UNet
    from fastguide.process import EDM, VP, Flow
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


def make_process(prediction: str, betas: str) -> VP | EDM | Flow:
    """The process that the networks with this prediction are trained on."""
    from fastguide.process import EDM, VP, Flow

    if prediction == "flow":
        return Flow()
    return EDM() if prediction == "edm" else VP(betas)  # type: ignore[arg-type]


def make_dit(
    images: Images,
    prediction: str,
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
        time_scale=_time_scale(prediction),
    )
    return net, Recipe(irrelevant, negative if second else 0.0, dropout)


def make_unet(
    images: Images,
    prediction: str,
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
        multipliers=_numbers("multipliers", multipliers),
        res_blocks=res_blocks,
        attention=_numbers("attention", attention),
        head_channels=head_channels,
        classes=0 if unconditional else len(images.class_names),
        variance=variance,
        time_scale=_time_scale(prediction),
    )
    return net, Recipe(dropout=0.0 if unconditional else dropout)


def _time_scale(prediction: str) -> float:
    return {"flow": 1000.0, "edm": 250.0}.get(prediction, 1.0)


def _numbers(argument: str, text: str) -> tuple[int, ...]:
    """ "1,2,2" to (1, 2, 2); "" to ()."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"{argument} is {text!r}, but it should be whole numbers, as in 1,2,2")
    return tuple(int(part) for part in parts)
