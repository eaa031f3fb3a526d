"""`fastguide sample`: guided samples of a model, as a grid, an archive or a file per seed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastguide.cli.guidance import HELP, SCHEDULES, parse_guidance
from fastguide.common.checks import did_you_mean

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
        float | None,
        typer.Option(help="where the guidance has no number for one; 1 is off [default: 3]"),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"of what has none of its own: {SCHEDULES}")
    ] = None,
    solver: Annotated[str, typer.Option(help="as in ddim:eta=1 or 'DPM++ 2M Karras'")] = "ddim",
    spacing: Annotated[str, typer.Option(help="of the levels, as in karras:rho=7")] = "",
    steps: int = 25,
    clamp: Annotated[
        str, typer.Option(help="of the denoised image: 1, -1:1, or dynamic[:QUANTILE]")
    ] = "",
    seeds: Annotated[str, typer.Option(help="as in 0-59 or 3,5,8: one image each")] = "0-19",
    batch: Annotated[int, typer.Option(help="images at a time")] = 20,
    out: Annotated[
        Path,
        typer.Option(
            help="a grid (.png, .jpg, .webp), an archive (.npz), or a folder of files, which is "
            "written as the run goes and goes on where it was interrupted"
        ),
    ] = Path("samples.png"),
    files: Annotated[
        str | None, typer.Option(help="of a folder: png, jpg or webp [default: png]")
    ] = None,
    columns: Annotated[int | None, typer.Option(help="of a grid [default: as it fits]")] = None,
    zoom: Annotated[int | None, typer.Option(help="of each image in a grid [default: 3]")] = None,
    device: str = "cpu",
    dtype: Annotated[str, typer.Option(help="of the network: fp32, bf16 or fp16")] = "fp32",
    as_json: Annotated[bool, typer.Option("--json", help="one line of JSON on stdout")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, no summary")] = False,
) -> None:
    """Draw guided samples, one per seed, into a grid, an archive or a folder of files."""
    from fastguide.cli.written import PICTURES, check_out
    from fastguide.common.arrays import as_device, as_dtype

    chosen_dtype, where, numbers = as_dtype(dtype), as_device(device), parse_seeds(seeds)
    for name, value in (("batch", batch), ("columns", columns), ("zoom", zoom)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, but it should be 1 or more")
    if files is not None and f".{files.lower()}" not in PICTURES:
        raise ValueError(f"files is {files!r}, but it should be png, jpg or webp")
    bounds = parse_clamp(clamp)
    ending = check_out(out)
    unused = ["files"] if ending else ["columns", "zoom"]
    unused += ["columns", "zoom"] if ending == ".npz" else []
    given = {"files": files, "columns": columns, "zoom": zoom}
    for name in (name for name in unused if given[name] is not None):
        kind = f"{ending} file" if ending else "folder"
        raise ValueError(f"{name} is {given[name]!r}, but out is a {kind}, which has none")
    import fastguide as fg
    from fastguide.cli.running import Run
    from fastguide.cli.written import Folder, write_archive
    from fastguide.common import images

    loaded = fg.load(model, where, chosen_dtype)
    chosen = parse_classes("classes", classes, loaded)
    against = parse_classes("negative", negative, loaded) if negative else []
    if len(against) > 1:
        raise ValueError(f"negative is {negative!r}, but it should be one class")
    how = parse_guidance(guidance, loaded, scale, schedule)
    sampler = fg.Sampler(loaded, how, solver, steps, spacing or None, clamp=bounds)
    labels = [chosen[i % len(chosen)] for i in range(len(numbers))] if chosen else None
    folder = None
    if not ending:
        settings = {
            "model": loaded.source,
            "weights": _digest(loaded),
            "classes": chosen,
            "negative": against,
            "guidance": str(how),
            "solver": solver,
            "spacing": spacing,
            "steps": steps,
            "clamp": clamp,
            "seeds": seeds,
            "dtype": str(chosen_dtype),
        }
        folder = Folder(out, settings, f".{(files or 'png').lower()}")
    todo = [i for i, seed in enumerate(numbers) if folder is None or folder.lacks(seed)]
    run = Run(sampler, numbers, labels, against[0] if against else None, batch, quiet)
    try:
        done, seconds = run(todo, folder)
    except KeyboardInterrupt:
        kept = f"what was made lies in {out}, and the same command goes on" if folder else ""
        typer.echo(f"fastguide: interrupted; {kept or 'nothing was written'}", err=True)
        raise typer.Exit(130) from None
    if ending == ".npz":
        write_archive(out, done, numbers, labels)
    elif ending:
        captions = [loaded.class_names[label] for label in labels or () if loaded.class_names]
        wide = columns or (len(chosen) if 1 < len(chosen) <= 12 else 8)
        images.save_image(images.grid(done, wide, captions, zoom or 3), out)
    rows = sampler.plan.net_rows
    if as_json:
        about = {"images": len(numbers), "made": len(todo), "out": str(out), "seconds": seconds}
        about |= {"steps": steps, "solver": solver, "guidance": str(how), "rows": rows}
        typer.echo(json.dumps(about))
    elif not quiet:
        there = f" ({len(numbers) - len(todo)} were there)" if len(todo) < len(numbers) else ""
        typer.echo(
            f"{len(numbers)} images{there}, {steps} steps of {solver}, {rows} network rows each, "
            f"in {seconds:.1f} s: {out}"
        )


def parse_clamp(text: str) -> Any:
    """ "1", "-1:1" or "dynamic:0.995"; None for "".

    Raises:
        ValueError: another text.
    """
    from fastguide.engine.threshold import DynamicThreshold

    name, _, tail = text.strip().lower().partition(":")
    try:
        if name == "dynamic":
            return DynamicThreshold(float(tail)) if tail else DynamicThreshold()
        numbers = tuple(float(one) for one in text.split(":")) if text else ()
    except ValueError as error:
        raise ValueError(
            f"clamp is {text!r}, but it should be as 1, -1:1 or dynamic:0.995: {error}"
        ) from None
    return None if not numbers else numbers[0] if len(numbers) == 1 else numbers


def _digest(model: Model) -> str:
    """Of the description of the model, which has that of its weights."""
    import hashlib

    from fastguide.assets import bundled, path_of

    folder = path_of(model.source) if model.source in bundled() else Path(model.source)
    return hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()


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
    names, word = model.class_names, text.strip().lower()
    count = model.null if isinstance(model.null, int) else len(names)
    if word == "none" or (word == "all" and not count):
        return []
    if word == "all":
        return list(range(count))
    lower = [name.lower() for name in names]
    out = []
    for part in (part.strip() for part in text.split(",")):
        if part.lower() in lower:
            out.append(lower.index(part.lower()))
        elif part.isdigit() and int(part) < count:
            out.append(int(part))
        else:
            known = ", ".join(names) or (
                f"0 to {count - 1}" if count else "none: the model has none"
            )
            hint = did_you_mean(part, names)
            raise ValueError(f"{argument} has {part!r}, but the classes are {known}{hint}")
    return out
