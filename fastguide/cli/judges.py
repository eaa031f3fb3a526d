"""`fastguide classifier` and `fastguide clip`: networks that judge noisy images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastguide.cli.dtypes import STORED, dtype_of
from fastguide.cli.progress import training

if TYPE_CHECKING:
    from fastguide.process import EDM, VP, Flow, Prediction
    from fastguide.training import Images, LoopConfig

Data = Annotated[Path, typer.Argument(help="folder with IDX files, or a subfolder per class")]
Out = Annotated[Path, typer.Argument(help="folder for the result; an interrupted run goes on")]
Names = Annotated[str, typer.Option(help="class names, with commas, for IDX files")]
Like = Annotated[str, typer.Option(help="the model to guide, for its noise: bundled, or a folder")]
PredictionName = Annotated[
    str, typer.Option(help="without --like, of the model to guide: flow, eps, x0, v or edm")
]
Betas = Annotated[
    str, typer.Option(help="without --like, of eps, x0 and v: linear, scaled_linear or cosine")
]
Width = Annotated[int, typer.Option(help="channels at full size")]
Multipliers = Annotated[
    str, typer.Option(help="each level's channels, in widths; a level halves the size")
]
ResBlocks = Annotated[int, typer.Option(help="residual blocks a level")]
Attention = Annotated[str, typer.Option(help="levels that attend: how many times smaller they are")]
HeadChannels = Annotated[int, typer.Option(help="channels of an attention head")]
Groups = Annotated[int, typer.Option(help="of the group norms")]
Autocast = Annotated[bool, typer.Option(help="bf16 matrix products")]
Compile = Annotated[bool, typer.Option(help="torch.compile the network")]
Stored = Annotated[str, typer.Option(help="of the stored weights: fp32 or fp16")]
Snapshot = Annotated[list[int] | None, typer.Option(help="steps to keep a result at")]


def classifier(
    context: typer.Context,
    data: Data,
    out: Out,
    names: Names = "",
    like: Like = "",
    prediction: PredictionName = "flow",
    betas: Betas = "cosine",
    steps: int = 2000,
    batch: int = 128,
    rate: float = 1e-3,
    width: Width = 32,
    multipliers: Multipliers = "1,2,4",
    res_blocks: ResBlocks = 1,
    attention: Attention = "4",
    head_channels: HeadChannels = 32,
    groups: Groups = 8,
    ema: float = 0.99,
    seed: int = 0,
    autocast: Autocast = True,
    compile: Compile = False,
    save_every: int = 500,
    dtype: Stored = "fp32",
    snapshot: Snapshot = None,
) -> None:
    """Train a classifier of noisy images, for `fg.load_classifier`."""
    from fastguide.nets import Encoder
    from fastguide.training import train_classifier

    stored = dtype_of(dtype, STORED)
    noise = _noise(context, data, names, like, prediction, betas)
    net = Encoder(
        len(noise.images.class_names),
        **_tower(noise, width, multipliers, res_blocks, attention, head_channels, groups),
    )
    config = _loop(
        steps,
        snapshot,
        batch=batch,
        rate=rate,
        ema=ema,
        seed=seed,
        autocast=autocast,
        compile=compile,
        save_every=save_every,
    )
    with training(steps) as report:
        train_classifier(
            net, noise.images, noise.process, noise.prediction, config, out, report, stored
        )


def clip(
    context: typer.Context,
    data: Data,
    out: Out,
    names: Names = "",
    like: Like = "",
    prediction: PredictionName = "flow",
    betas: Betas = "cosine",
    steps: int = 2000,
    batch: int = 128,
    rate: float = 1e-3,
    width: Width = 32,
    multipliers: Multipliers = "1,2,4",
    res_blocks: ResBlocks = 1,
    attention: Attention = "4",
    head_channels: HeadChannels = 32,
    groups: Groups = 8,
    dimensions: Annotated[int, typer.Option(help="of the common space")] = 64,
    text_width: Annotated[int, typer.Option(help="of the text tower")] = 64,
    text_depth: Annotated[int, typer.Option(help="blocks of the text tower")] = 2,
    text_heads: Annotated[int, typer.Option(help="heads of a block of the text tower")] = 4,
    text_length: Annotated[int, typer.Option(help="most bytes of a text")] = 64,
    ema: float = 0.99,
    seed: int = 0,
    autocast: Autocast = True,
    compile: Compile = False,
    save_every: int = 500,
    dtype: Stored = "fp32",
    snapshot: Snapshot = None,
) -> None:
    """Train encoders of noisy images and of the names of their classes, for
    `fg.load_text_image`.
    """
    from fastguide.nets import TextImageNet
    from fastguide.training import train_text_image

    stored = dtype_of(dtype, STORED)
    noise = _noise(context, data, names, like, prediction, betas)
    net = TextImageNet(
        dimensions,
        **_tower(noise, width, multipliers, res_blocks, attention, head_channels, groups),
        text_width=text_width,
        text_depth=text_depth,
        text_heads=text_heads,
        text_length=text_length,
    )
    config = _loop(
        steps,
        snapshot,
        batch=batch,
        rate=rate,
        ema=ema,
        seed=seed,
        autocast=autocast,
        compile=compile,
        save_every=save_every,
    )
    with training(steps) as report:
        train_text_image(
            net, noise.images, noise.process, noise.prediction, config, out, report, stored
        )


def _loop(steps: int, snapshot: list[int] | None, **rest: Any) -> LoopConfig:
    from fastguide.training import LoopConfig

    return LoopConfig(steps=steps, warmup=min(200, steps), snapshots=tuple(snapshot or ()), **rest)


@dataclass(frozen=True)
class Noise:
    """The images, and whose noise they get."""

    images: Images
    process: VP | EDM | Flow
    prediction: Prediction


def _noise(
    context: typer.Context, data: Path, names: str, like: str, prediction: str, betas: str
) -> Noise:
    import fastguide as fg
    from fastguide.cli import nets
    from fastguide.training import load_images

    chosen = tuple(filter(None, names.split(",")))
    if not like:
        kind = fg.Prediction(prediction)  # type: ignore[arg-type]
        process = nets.make_process(prediction, betas)
        return Noise(load_images(data, names=chosen), process, kind)
    for name in ("prediction", "betas"):
        if nets.given(context, name):
            raise ValueError(f"{name} is given beside like, {like!r}, which has its own")
    model = fg.load(like)
    images = load_images(data, names=chosen or model.class_names)
    shape = tuple(images.pixels.shape[1:])
    if shape != model.shape:
        raise ValueError(f"data has images of shape {shape}, but {like!r} has {model.shape}")
    return Noise(images, model.process, model.prediction)


def _tower(
    noise: Noise,
    width: int,
    multipliers: str,
    res_blocks: int,
    attention: str,
    head_channels: int,
    groups: int,
) -> dict[str, Any]:
    from fastguide.cli import nets

    return {
        "channels": noise.images.pixels.shape[1],
        "width": width,
        "multipliers": nets.numbers("multipliers", multipliers),
        "res_blocks": res_blocks,
        "attention": nets.numbers("attention", attention),
        "head_channels": head_channels,
        "groups": groups,
        "time_scale": nets.time_scale(noise.process, noise.prediction),
    }
