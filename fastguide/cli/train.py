"""`fastguide train`: train a network on IDX files or a folder of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastguide.cli import nets
from fastguide.cli.dtypes import STORED, dtype_of
from fastguide.cli.options import settings_as_options
from fastguide.cli.progress import training
from fastguide.training.train import TrainConfig

Data = Annotated[Path, typer.Argument(help="folder with IDX files, or a subfolder per class")]
Out = Annotated[Path, typer.Argument(help="folder for the result; an interrupted run goes on")]
Names = Annotated[str, typer.Option(help="class names, with commas, for IDX files")]
Stored = Annotated[str, typer.Option(help="of the stored weights: fp32 or fp16")]
Snapshot = Annotated[list[int] | None, typer.Option(help="steps to keep a result at")]


@settings_as_options(without=("warmup", "snapshots", "recipe"))
def train(
    context: typer.Context,
    data: Data,
    out: Out,
    *,
    names: Names = "",
    prediction: Annotated[str, typer.Option(help="flow, eps, x0, v or edm")] = "flow",
    betas: Annotated[
        str, typer.Option(help="of eps, x0 and v: linear, scaled_linear or cosine")
    ] = "cosine",
    network: nets.NetOptions,
    config: TrainConfig,
    dtype: Stored = "fp32",
    snapshot: Snapshot = None,
) -> None:
    """Train a network; with the defaults, a DiT that does single-pass superconditioning and CFG."""
    from fastguide.process import Prediction
    from fastguide.training import load_images
    from fastguide.training import train as run

    chosen_dtype = dtype_of(dtype, STORED)
    nets.check_options(network.net, [name for name in context.params if nets.given(context, name)])
    images = load_images(data, names=class_names(names))
    process = nets.make_process(prediction, betas)
    kind = Prediction(prediction)  # type: ignore[arg-type]
    net, recipe = nets.make_network(network, images, process, kind)
    config = replace(config, snapshots=tuple(snapshot or ()), recipe=recipe)
    with training(config.steps) as report:
        run(net, images, process, kind, config, out, report, chosen_dtype)


def class_names(text: str) -> tuple[str, ...]:
    """Names that stand between commas."""
    return tuple(filter(None, text.split(",")))
