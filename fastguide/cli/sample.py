"""`fastguide sample`: guided samples of a model, as one grid or one file per seed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastguide.cli.dtypes import COMPUTED, dtype_of
from fastguide.cli.guidance import HELP, SCHEDULES, parse_guidance, parse_schedule

if TYPE_CHECKING:
    from fastguide.model import Model


def sample(
    model: Annotated[str, typer.Argument(help="a bundled model, or a folder")] = "fashion",
    classes: Annotated[
        str, typer.Option(help="names or numbers, with commas, taken in turn; 'all'; or 'none'")
    ] = "all",
    negative: Annotated[str, typer.Option(help="negative class: a name or a number")] = "",
    guidance: Annotated[str, typer.Option(help=HELP)] = "auto",
    scale: Annotated[
        float, typer.Option(help="of cfg and superconditioning without a number; 1 is off")
    ] = 3.0,
    schedule: Annotated[str, typer.Option(help=f"of the guidance: {SCHEDULES}")] = "constant",
    solver: Annotated[str, typer.Option(help="as in ddim:eta=1 or 'DPM++ 2M Karras'")] = "ddim",
    spacing: Annotated[str, typer.Option(help="of the levels, as in karras:rho=7")] = "",
    steps: int = 25,
    seeds: Annotated[str, typer.Option(help="as in 0-59 or 3,5,8: one image each")] = "0-59",
    batch: Annotated[int, typer.Option(help="images at a time")] = 64,
    out: Annotated[Path, typer.Option(help="a .png for a grid, else a folder")] = Path(
        "samples.png"
    ),
    columns: Annotated[int, typer.Option(help="of the grid; 0 chooses")] = 0,
    zoom: Annotated[int, typer.Option(help="enlarge each image in the grid")] = 3,
    device: str = "cpu",
    dtype: Annotated[str, typer.Option(help="of the network: fp32, bf16 or fp16")] = "fp32",
) -> None:
    """Draw guided samples, one per seed, into a PNG grid or a folder of files."""
    import time

    import torch
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    import fastguide as fg
    from fastguide.common import images
    from fastguide.common.files import make_folder
    from fastguide.sampling.checks import as_device

    chosen_dtype = dtype_of(dtype, COMPUTED)
    if batch < 1:
        raise ValueError(f"batch is {batch}, but it should be 1 or more")
    if columns < 0 or zoom < 1:
        raise ValueError(
            f"columns, zoom are {columns}, {zoom}, but they should not be negative or 0"
        )
    numbers = parse_seeds(seeds)
    where = as_device(device)
    as_grid = out.suffix.lower() == ".png"
    make_folder(out.parent if as_grid else out)  # before the work
    if as_grid and out.is_dir():
        raise IsADirectoryError(f"out is {out}, but that is a folder")
    loaded = fg.load(model, where, chosen_dtype)
    chosen = parse_classes("classes", classes, loaded)
    against = parse_classes("negative", negative, loaded) if negative else []
    if len(against) > 1:
        raise ValueError(f"negative is {negative!r}, but it should be one class")
    sampler = fg.Sampler(
        loaded,
        guidance=parse_guidance(guidance, scale, parse_schedule(schedule), loaded),
        solver=solver,
        steps=steps,
        spacing=spacing or None,
    )
    labels = [chosen[i % len(chosen)] for i in range(len(numbers))] if chosen else None
    columns_of_progress = (
        *Progress.get_default_columns()[:3],
        MofNCompleteColumn(),
        TextColumn("evaluations"),
        TimeElapsedColumn(),
    )
    done, start = [], time.perf_counter()
    with Progress(*columns_of_progress) as progress:
        batches = range(0, len(numbers), batch)
        task = progress.add_task("sampling", total=len(batches) * sampler.plan.evaluations)
        for first in batches:
            part = slice(first, first + batch)
            done.append(
                sampler(
                    cond=labels[part] if labels else None,
                    seeds=numbers[part],
                    negative=against[0] if against else None,
                    callback=lambda _: progress.advance(task),
                )
            )
    seconds = time.perf_counter() - start
    result = torch.cat(done).cpu()
    if as_grid:
        captions = [loaded.class_names[label] for label in labels] if labels else []
        wide = columns or (len(chosen) if 1 < len(chosen) <= 12 else 8)
        images.save_png(images.grid(result, wide, captions, zoom), out)
    else:
        for seed, image in zip(numbers, result, strict=True):
            images.save_png(images.to_pil(image), out / f"{seed:06d}.png")
    rows = sampler.plan.net_rows
    typer.echo(
        f"{len(numbers)} images, {steps} steps of {solver}, {rows} network rows each, "
        f"in {seconds:.1f} s: {out}"
    )


MOST_SEEDS = 10_000_000


def parse_seeds(text: str) -> list[int]:
    """ "0-3,7" to [0, 1, 2, 3, 7]."""
    out: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise ValueError(f"seeds is {text!r}, but it should read like 0-63 or 3,5,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= 2**63 or len(out) + last - first >= MOST_SEEDS:
            raise ValueError(
                f"seeds is {text!r}, but it should be below 2^63, and at most {MOST_SEEDS} at once"
            )
        out += range(first, last + 1)
    return out


def parse_classes(argument: str, text: str, model: Model) -> list[int]:
    """Class labels by name (any case) or number; [] for "none"."""
    names = model.class_names
    if text == "none" or (text == "all" and not names):
        return []
    if text == "all":
        return list(range(len(names)))
    lower = [name.lower() for name in names]
    out = []
    for part in (part.strip() for part in text.split(",")):
        if part.lower() in lower:
            out.append(lower.index(part.lower()))
        elif part.isdigit() and int(part) < len(names):
            out.append(int(part))
        else:
            known = ", ".join(names) or "none: the model is unconditional"
            raise ValueError(f"{argument} has {part!r}, but the classes are {known}")
    return out
