"""Table 1 of DDIM (Song et al. 2021) on Fashion-MNIST: how much noise for how many steps?

Frechet distance of unconditional samples (a classifier's features, against the test set) for eta in
{0, 0.2, 0.5, 1} and for sigma-hat, DDPM with the larger variance and the denoised image clamped, at
S = 10 ... 1000 of 1000 steps, evenly spaced. The model predicts eps on a linear schedule:

    make ddim-table    # trains it into out/eps, some 45 minutes on two cores, then 40 of sampling

Results are written after every cell, and a run that was stopped goes on.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import classifier
import study
import typer
from picture import panels, write_png
from results import RESULTS, console, keep, kept_or_anew, start
from rich.table import Table
from study import CACHE, DATA, CacheOption, DataOption, DtypeOption, Judge

import fastguide as fg

STEPS = (10, 20, 50, 100, 1000)
NOISE: dict[str, dict[str, Any]] = {
    **{f"eta {eta:g}": {"solver": fg.ddim(eta=eta)} for eta in (0.0, 0.2, 0.5, 1.0)},
    "sigma-hat": {"solver": fg.ddpm(variance="large"), "clamp": 1.0},
}


def cell(model: fg.Model, judge: Judge, noise: str, steps: int, samples: int) -> dict[str, Any]:
    """The distance of `samples` samples."""
    sampler = fg.Sampler(model, steps=steps, spacing=fg.leading, **NOISE[noise])
    ((pixels, seconds),) = study.draw([sampler], samples, what=f"{noise}, {steps} steps")
    return {
        "noise": noise,
        "steps": steps,
        "samples": samples,
        "frechet": judge.frechet(judge.features(pixels)),
        "seconds": seconds * samples,
    }


def plot(cells: list[dict[str, Any]], floors: dict[str, float], path: Path) -> None:
    """The distance over S, a line for each amount of noise."""
    figure, (axes,) = panels(1, (6.0, 4.0))
    for noise in NOISE:
        line = sorted((c["steps"], c["frechet"]) for c in cells if c["noise"] == noise)
        axes.plot(*zip(*line, strict=True), marker="o", label=noise)
    counts = {c["steps"]: c["samples"] for c in cells}
    axes.plot(
        sorted(counts), [floors[str(counts[s])] for s in sorted(counts)], "k:", label="train images"
    )
    axes.set(xscale="log", yscale="log", xlabel="steps S", ylabel="Frechet distance")
    axes.set_xticks(sorted(counts), [f"{s}\n({counts[s]})" for s in sorted(counts)])
    axes.minorticks_off()
    axes.set_title("Fashion-MNIST, eps-prediction; in brackets: samples a cell", fontsize=10)
    axes.legend()
    write_png(figure, path, 110)


def show(cells: list[dict[str, Any]]) -> None:
    """The table as in the paper."""
    steps = sorted({c["steps"] for c in cells})
    table = Table("noise", *(f"S = {s}" for s in steps))
    found = {(c["noise"], c["steps"]): f"{c['frechet']:.2f}" for c in cells}
    for noise in NOISE:
        table.add_row(noise, *(found.get((noise, s), "") for s in steps))
    console.print(table)


def main(
    model: Annotated[str, typer.Argument(help="folder of an unconditional model")] = "out/eps",
    samples: Annotated[int, typer.Option(help="of a cell up to 100 steps")] = 1000,
    long_samples: Annotated[int, typer.Option(help="of a cell of 1000 steps")] = 250,
    dtype: DtypeOption = "bf16",
    data: DataOption = DATA,
    cache: CacheOption = CACHE,
) -> None:
    """Measure, write and plot the table."""
    loaded = study.load_model(model, dtype)
    judge = study.make_judge(data, cache, loaded)
    path = RESULTS / "ddim_table.json"
    found = kept_or_anew(
        path,
        study.run_of({"dtype": dtype}, model, loaded, judge),
        study.in_common,
    )
    cells: list[dict[str, Any]] = found.setdefault("cells", [])
    floors: dict[str, float] = found.setdefault("train_images", {})
    for count in (samples, long_samples):  # fewer samples, larger distance: what real images have
        if str(count) not in floors:
            draws = classifier.balanced_draws(judge.train.labels, count, 20)
            sets = [judge.features(judge.train.pixels[index]) for index in draws]
            floors[str(count)] = statistics.mean(judge.frechet(features) for features in sets)
    for steps in STEPS:
        count = samples if steps < 1000 else long_samples
        for noise in NOISE:
            if (noise, steps, count) in {(c["noise"], c["steps"], c["samples"]) for c in cells}:
                continue
            cells.append(cell(loaded, judge, noise, steps, count))
            console.print(cells[-1])
            keep(path, found)
    plot(cells, floors, path.with_suffix(".png"))
    show(cells)


if __name__ == "__main__":
    start(main)
