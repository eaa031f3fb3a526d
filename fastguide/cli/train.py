"""`fastguide train`: train a network on IDX files or a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastguide.cli.dtypes import STORED, dtype_of
from fastguide.cli.progress import training


def train(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="folder with IDX files, or a subfolder per class")],
    out: Annotated[Path, typer.Argument(help="folder for the model; an interrupted run goes on")],
    names: Annotated[str, typer.Option(help="class names, with commas, for IDX files")] = "",
    steps: int = 8000,
    batch: int = 128,
    rate: float = 1e-3,
    prediction: Annotated[str, typer.Option(help="flow, eps, x0, v or edm")] = "flow",
    betas: Annotated[
        str, typer.Option(help="of eps, x0 and v: linear, scaled_linear or cosine")
    ] = "cosine",
    net: Annotated[str, typer.Option(help="dit, a transformer, or unet, the U-Net of ADM")] = "dit",
    width: Annotated[int | None, typer.Option(help="of the network: dit 192, unet 64")] = None,
    depth: Annotated[int, typer.Option(help="dit: blocks")] = 6,
    patch: Annotated[int, typer.Option(help="dit: pixels a side of a token")] = 4,
    attention_heads: Annotated[int, typer.Option(help="dit: heads a block")] = 6,
    multipliers: Annotated[
        str, typer.Option(help="unet: each level's channels, in widths; a level halves the size")
    ] = "1,2,2",
    res_blocks: Annotated[int, typer.Option(help="unet: residual blocks a level")] = 2,
    attention: Annotated[
        str, typer.Option(help="unet: which levels attend: how many times smaller they are")
    ] = "2,4",
    head_channels: Annotated[int, typer.Option(help="unet: channels of an attention head")] = 64,
    variance: Annotated[
        bool, typer.Option(help="unet: learn the variance too, for ddpm:variance=learned")
    ] = False,
    irrelevant: Annotated[
        float | None,
        typer.Option(help="dit: share of rows with an irrelevant condition; 0.1, 0 where split"),
    ] = None,
    negative: Annotated[
        float, typer.Option(help="dit: share of rows with a negative condition")
    ] = 0.1,
    dropout: Annotated[float, typer.Option(help="share of rows without a condition")] = 0.1,
    split: Annotated[
        bool, typer.Option(help="dit: keep the second head from the condition by construction")
    ] = True,
    unconditional: bool = False,
    ema: float = 0.999,
    seed: int = 0,
    autocast: Annotated[bool, typer.Option(help="bf16 matrix products")] = True,
    compile: Annotated[bool, typer.Option(help="torch.compile the network")] = False,
    save_every: int = 500,
    dtype: Annotated[str, typer.Option(help="of the stored weights: fp32 or fp16")] = "fp32",
    snapshot: Annotated[list[int] | None, typer.Option(help="steps to keep a model at")] = None,
    lengths: Annotated[
        str, typer.Option(help="of averages to keep for `fastguide ema`, as in 0.05,0.1")
    ] = "",
    keep_every: Annotated[int, typer.Option(help="steps between kept averages")] = 500,
) -> None:
    """Train a network; with the defaults, a DiT that does single-pass superconditioning and CFG."""
    from fastguide.cli import nets
    from fastguide.process import Prediction
    from fastguide.training import TrainConfig, load_images
    from fastguide.training import train as run
    from fastguide.training.trainable import Denoiser

    chosen_dtype = dtype_of(dtype, STORED)
    nets.check_options(net, [name for name in context.params if nets.given(context, name)])
    images = load_images(data, names=tuple(filter(None, names.split(","))))
    process = nets.make_process(prediction, betas)
    kind = Prediction(prediction)  # type: ignore[arg-type]
    network: Denoiser
    if net == "dit":
        network, recipe = nets.make_dit(
            images,
            process,
            kind,
            width=192 if width is None else width,
            depth=depth,
            patch=patch,
            attention_heads=attention_heads,
            irrelevant=irrelevant,
            negative=negative,
            dropout=dropout,
            split=split,
            unconditional=unconditional,
        )
    else:
        network, recipe = nets.make_unet(
            images,
            process,
            kind,
            width=64 if width is None else width,
            multipliers=multipliers,
            res_blocks=res_blocks,
            attention=attention,
            head_channels=head_channels,
            variance=variance,
            dropout=dropout,
            unconditional=unconditional,
        )
    config = TrainConfig(
        steps=steps,
        batch=batch,
        rate=rate,
        ema=ema,
        seed=seed,
        autocast=autocast,
        compile=compile,
        save_every=save_every,
        snapshots=tuple(snapshot or ()),
        lengths=_lengths(lengths),
        keep_every=keep_every,
        recipe=recipe,
    )
    with training(steps) as report:
        run(network, images, process, kind, config, out, report, chosen_dtype)


def _lengths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"lengths is {text!r}, but it should read like 0.05,0.1") from None
