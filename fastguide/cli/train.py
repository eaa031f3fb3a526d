"""`fastguide train`: train a DiT on IDX files or a folder of images."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer


def train(
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
    width: int = 192,
    depth: int = 6,
    patch: int = 4,
    attention_heads: int = 6,
    irrelevant: Annotated[
        float | None,
        typer.Option(help="share of rows with an irrelevant condition; 0.1, or 0 where split"),
    ] = None,
    negative: Annotated[float, typer.Option(help="share of rows with a negative condition")] = 0.1,
    dropout: Annotated[float, typer.Option(help="share of rows without a condition")] = 0.1,
    split: Annotated[
        bool, typer.Option(help="keep the second head from the condition by construction")
    ] = True,
    unconditional: bool = False,
    ema: float = 0.999,
    seed: int = 0,
    autocast: Annotated[bool, typer.Option(help="bf16 matrix products")] = True,
    compile: Annotated[bool, typer.Option(help="torch.compile the network")] = False,
    save_every: int = 500,
    dtype: Annotated[str, typer.Option(help="of the stored weights: fp32 or fp16")] = "fp32",
    snapshot: Annotated[list[int] | None, typer.Option(help="steps to keep a model at")] = None,
) -> None:
    """Train a DiT; with the defaults, one that does single-pass superconditioning and CFG."""
    import torch
    from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from fastguide.nets import DiT
    from fastguide.process import EDM, VP, Flow, Prediction
    from fastguide.training import Recipe, TrainConfig, load_images
    from fastguide.training import train as run

    dtypes = {"fp32": torch.float32, "fp16": torch.float16}
    if dtype not in dtypes:
        raise ValueError(f"dtype is {dtype!r}, but it should be one of {', '.join(dtypes)}")
    images = load_images(data, names=tuple(filter(None, names.split(","))))
    process = {"flow": Flow(), "edm": EDM()}.get(prediction, VP(betas))  # type: ignore[arg-type]
    if unconditional:
        split, irrelevant, dropout = False, 0.0, 0.0
    if irrelevant is None:
        irrelevant = 0.0 if split else 0.1
    second = split or irrelevant > 0
    recipe = Recipe(irrelevant, negative if second else 0.0, dropout)
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
        time_scale={"flow": 1000.0, "edm": 250.0}.get(prediction, 1.0),
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
        recipe=recipe,
    )
    columns = (
        TextColumn("loss {task.fields[loss]:.4f}, {task.fields[speed]:.2f} steps/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*Progress.get_default_columns()[:3], *columns) as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"), speed=0.0)
        smooth = [0.0]
        marks: deque[float] = deque(maxlen=50)  # when the last steps were done

        def report(step: int, loss: float) -> None:
            smooth[0] = loss if step == 1 or not smooth[0] else 0.98 * smooth[0] + 0.02 * loss
            marks.append(time.perf_counter())
            speed = (len(marks) - 1) / max(marks[-1] - marks[0], 1e-9)
            progress.update(task, completed=step, loss=smooth[0], speed=speed)

        run(net, images, process, Prediction(prediction), config, out, report, dtypes[dtype])  # type: ignore[arg-type]
