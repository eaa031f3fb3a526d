"""`fastguide sims`: the auxiliary model of SIMS, a copy fine-tuned on the model's own samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastguide.cli.dtypes import STORED, dtype_of

if TYPE_CHECKING:
    from fastguide.model import Model
    from fastguide.training import Images

SHARD = 500  # samples a file


def sims(
    model: Annotated[str, typer.Argument(help="a bundled model, or a folder")],
    out: Annotated[Path, typer.Argument(help="folder for the model; an interrupted run goes on")],
    samples: Annotated[int, typer.Option(help="of its own that the copy is taught")] = 20000,
    sample_steps: Annotated[int, typer.Option(help="solver steps of a sample")] = 25,
    steps: Annotated[int, typer.Option(help="of training")] = 1000,
    batch: int = 128,
    rate: float = 1e-4,
    ema: float = 0.99,
    seed: Annotated[int, typer.Option(help="of the first sample, and of the training")] = 0,
    compile: Annotated[bool, typer.Option(help="torch.compile the network")] = False,
    dtype: Annotated[str, typer.Option(help="of the stored weights: fp32 or fp16")] = "fp32",
) -> None:
    """Sample MODEL without guidance, fine-tune a copy of it on the samples, and write that to OUT:
    what `fg.SIMS(auxiliary, weight)` leads away from.
    """
    from rich.progress import Progress

    import fastguide as fg
    from fastguide.training import Recipe, TrainConfig
    from fastguide.training import train as run

    chosen_dtype = dtype_of(dtype, STORED)
    if samples < batch:
        raise ValueError(f"samples is {samples}, but it should be at least batch, {batch}")
    loaded = fg.load(model)
    net: Any = loaded.net
    net.requires_grad_(True)
    recipe = Recipe(
        irrelevant=0.1 if loaded.heads == 2 and not net.split else 0.0,
        negative=0.1 if loaded.negative else 0.0,
        dropout=0.1 if loaded.null is not None else 0.0,
    )
    config = TrainConfig(
        steps, batch, rate, min(100, steps), ema, seed, compile=compile, recipe=recipe
    )
    with Progress() as progress:
        task = progress.add_task("sampling", total=samples)
        images = own_samples(
            loaded,
            out / "samples",
            samples,
            sample_steps,
            seed,
            lambda done: progress.update(task, completed=done),
        )
        task = progress.add_task("training", total=steps)
        run(
            net,
            images,
            loaded.process,
            loaded.prediction,
            config,
            out,
            lambda step, _: progress.update(task, completed=step),
            chosen_dtype,
            initial={name: value.detach().clone() for name, value in net.named_parameters()},
        )
    typer.echo(f"{out}: {model} after {steps} steps on {samples} samples of its own")


def own_samples(
    model: Model, folder: Path, count: int, steps: int, seed: int, report: object = None
) -> Images:
    """`count` unguided samples, classes in turn, sample i by seed `seed + i`; kept in `folder`, a
    file for each 500, so that an interrupted run goes on.
    """
    import torch
    from safetensors.torch import load, save

    import fastguide as fg
    from fastguide.common.files import write_atomic
    from fastguide.common.images import to_uint8
    from fastguide.training import Images

    sampler = fg.Sampler(model, steps=steps)
    classes = max(len(model.class_names), 1)
    pixels, labels = [], []
    for start in range(0, count, SHARD):
        numbers = torch.arange(start, min(start + SHARD, count))
        path = folder / f"{seed + start}-{len(numbers)}-{steps}.safetensors"
        own = numbers % classes
        if path.is_file():
            shard = load(path.read_bytes())["pixels"]
        else:
            cond = own if model.null is not None else None
            shard = to_uint8(sampler(cond, numbers + seed))
            write_atomic(path, save({"pixels": shard.contiguous()}))
        pixels.append(shard)
        labels.append(own)
        if callable(report):
            report(start + len(numbers))
    names = model.class_names or ("all",)
    return Images(torch.cat(pixels), torch.cat(labels), names)
