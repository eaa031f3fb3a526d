"""`fastguide classifier` and `fastguide clip`: networks that judge noisy images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fastguide.cli.dtypes import STORED, dtype_of
from fastguide.cli.options import settings_as_options
from fastguide.cli.progress import training
from fastguide.cli.train import Data, Names, Out, Snapshot, Stored, class_names
from fastguide.training.judges import JudgeConfig

if TYPE_CHECKING:
    from fastguide.process import Noising, Prediction
    from fastguide.training import Images

NO_OPTIONS = ("warmup", "snapshots", "lengths", "keep_every")


@dataclass(frozen=True)
class NoiseOptions:
    """Whose noise the images get.

    Args:
        like: the model to guide, for its noise: bundled, or a folder.
        prediction: without --like, of the model to guide: flow, eps, x0, v or edm.
        betas: without --like, of eps, x0 and v: linear, scaled_linear or cosine.
    """

    like: str = ""
    prediction: str = "flow"
    betas: str = "cosine"


@dataclass(frozen=True)
class Tower:
    """The encoder of images.

    Args:
        width: channels at full size.
        multipliers: each level's channels, in widths; a level halves the size.
        res_blocks: residual blocks a level.
        attention: levels that attend: how many times smaller they are.
        head_channels: channels of an attention head.
        groups: of the group norms.
    """

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    res_blocks: int = 1
    attention: tuple[int, ...] = (4,)
    head_channels: int = 32
    groups: int = 8


@dataclass(frozen=True)
class TextTower:
    """The encoder of texts.

    Args:
        dimensions: of the common space.
        text_width: of the text tower.
        text_depth: blocks of the text tower.
        text_heads: heads of a block of the text tower.
        text_length: most bytes of a text.
    """

    dimensions: int = 64
    text_width: int = 64
    text_depth: int = 2
    text_heads: int = 4
    text_length: int = 64


@settings_as_options(without=NO_OPTIONS)
def classifier(
    context: typer.Context,
    data: Data,
    out: Out,
    *,
    names: Names = "",
    noise: NoiseOptions,
    tower: Tower,
    config: JudgeConfig,
    dtype: Stored = "fp32",
    snapshot: Snapshot = None,
) -> None:
    """Train a classifier of noisy images, for `fg.load_classifier`."""
    from fastguide.nets import Encoder
    from fastguide.training import train_classifier

    def make(images: Images, **rest: Any) -> Encoder:
        return Encoder(len(images.class_names), **asdict(tower), **rest)

    _train(context, data, out, names, noise, config, dtype, snapshot, make, train_classifier)


@settings_as_options(without=NO_OPTIONS)
def clip(
    context: typer.Context,
    data: Data,
    out: Out,
    *,
    names: Names = "",
    noise: NoiseOptions,
    tower: Tower,
    text: TextTower,
    config: JudgeConfig,
    dtype: Stored = "fp32",
    snapshot: Snapshot = None,
) -> None:
    """Train encoders of noisy images and of the names of their classes, for
    `fg.load_text_image`.
    """
    from fastguide.nets import TextImageNet
    from fastguide.training import train_text_image

    def make(images: Images, **rest: Any) -> TextImageNet:
        of_text = asdict(text)
        return TextImageNet(of_text.pop("dimensions"), **of_text, **asdict(tower), **rest)

    _train(context, data, out, names, noise, config, dtype, snapshot, make, train_text_image)


def _train(
    context: typer.Context,
    data: Path,
    out: Path,
    names: str,
    noise: NoiseOptions,
    config: JudgeConfig,
    dtype: str,
    snapshot: list[int] | None,
    make: Callable[..., Any],
    run: Callable[..., object],
) -> None:
    """What both commands do: `run` teaches the network of `make`."""
    from fastguide.cli import nets

    stored = dtype_of(dtype, STORED)
    seen = _noised(context, data, names, noise)
    scale = nets.time_scale(seen.process, seen.prediction)
    net = make(seen.images, channels=seen.images.pixels.shape[1], time_scale=scale)
    config = replace(
        config, warmup=min(config.warmup, config.steps), snapshots=tuple(snapshot or ())
    )
    with training(config.steps) as report:
        run(net, seen.images, seen.process, seen.prediction, config, out, report, stored)


@dataclass(frozen=True)
class Noised:
    """The images, and whose noise they get."""

    images: Images
    process: Noising
    prediction: Prediction


def _noised(context: typer.Context, data: Path, names: str, noise: NoiseOptions) -> Noised:
    import fastguide as fg
    from fastguide.cli import nets
    from fastguide.training import load_images

    chosen, like = class_names(names), noise.like
    if not like:
        kind = fg.Prediction(noise.prediction)  # type: ignore[arg-type]
        process = nets.make_process(noise.prediction, noise.betas)
        return Noised(load_images(data, names=chosen), process, kind)
    for name in ("prediction", "betas"):
        if nets.given(context, name):
            raise ValueError(f"{name} is given beside like, {like!r}, which has its own")
    model = fg.load(like)
    images = load_images(data, names=chosen or model.class_names)
    shape = tuple(images.pixels.shape[1:])
    if shape != model.shape:
        raise ValueError(f"data has images of shape {shape}, but {like!r} has {model.shape}")
    return Noised(images, model.process, model.prediction)
