"""Table 1 of DDIM (Song et al. 2021) on Fashion-MNIST: how much noise for how many steps?

Frechet distance of unconditional samples (a classifier's features, against the test set) for eta in
{0, 0.2, 0.5, 1} and for sigma-hat, DDPM with the larger variance and the denoised image clamped, at
S = 10 ... 1000 of 1000 steps, evenly spaced. The model predicts eps on a linear schedule:

    make ddim-table    # trains it into out/eps, some 45 minutes on two cores, then 40 of sampling

Results are written after every cell, and a run that was stopped goes on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import classifier
import torch
import typer
from machine import where_and_when
from picture import panels, write_png
from rich.table import Table

import fastguide as fg
from fastguide.checkpoint import write_atomic
from fastguide.images import to_pixels
from fastguide.memory import keep_freed_memory
from fastguide.training.data import load_images

HERE = Path(__file__).resolve().parent
DATA, CACHE = Path("/usr/share/datasets/fashion-mnist"), HERE.parent / "out"
RESULTS, PICTURE = HERE / "results" / "ddim_table.json", HERE / "results" / "ddim_table.png"
STEPS = (10, 20, 50, 100, 1000)
BATCH = 250
NOISE: dict[str, dict[str, Any]] = {
    **{f"eta {eta:g}": {"solver": fg.ddim(eta=eta)} for eta in (0.0, 0.2, 0.5, 1.0)},
    "sigma-hat": {"solver": fg.ddpm(variance="large"), "clamp": 1.0},
}


def cell(
    model: fg.Model,
    judge: classifier.Classifier,
    frechet: classifier.FrechetTo,
    noise: str,
    steps: int,
    samples: int,
) -> dict[str, Any]:
    """The distance of `samples` samples."""
    sampler = fg.Sampler(model, steps=steps, spacing=fg.leading, **NOISE[noise])
    began, features = time.perf_counter(), []
    for start in range(0, samples, BATCH):
        images = sampler(seeds=range(start, min(start + BATCH, samples)))
        features.append(judge.judge(to_pixels(images))[0])
    return {
        "noise": noise,
        "steps": steps,
        "samples": samples,
        "frechet": frechet(torch.cat(features)),
        "seconds": time.perf_counter() - began,
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
    classifier.console.print(table)


def main(
    model: Annotated[str, typer.Argument(help="folder of an unconditional model")] = "out/eps",
    samples: Annotated[int, typer.Option(help="of a cell up to 100 steps")] = 1000,
    long_samples: Annotated[int, typer.Option(help="of a cell of 1000 steps")] = 250,
    dtype: Annotated[str, typer.Option(help="of the network: fp32 or bf16")] = "bf16",
    data: Annotated[Path, typer.Option(help="folder with Fashion-MNIST's IDX files")] = DATA,
    cache: Annotated[Path, typer.Option(help="folder of the classifier")] = CACHE,
) -> None:
    """Measure, write and plot the table."""
    loaded = fg.load(model, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    train, test = (load_images(data, split) for split in ("train", "t10k"))
    judge = classifier.load_or_train(cache, train, test)
    frechet = classifier.FrechetTo(judge.judge(test.pixels)[0])
    assert isinstance(loaded.net, torch.nn.Module)
    run = {
        **where_and_when(),
        "dtype": dtype,
        "model": {"sha256": classifier.digest(loaded.net), "process": repr(loaded.process)},
        "classifier": judge.about,
    }
    results: dict[str, Any] = {**run, "cells": []}
    if RESULTS.is_file():
        before = json.loads(RESULTS.read_text())
        if before["model"] == run["model"] and before["dtype"] == dtype:
            results = before
    cells: list[dict[str, Any]] = results["cells"]
    floors = {}
    for count in (samples, long_samples):  # fewer samples, larger distance: what real images have
        draws = classifier.balanced_draws(train.labels, count, 20)
        distances = [frechet(judge.judge(train.pixels[index])[0]) for index in draws]
        floors[str(count)] = sum(distances) / len(distances)
    results["train_images"] = floors
    for steps in STEPS:
        count = samples if steps < 1000 else long_samples
        for noise in NOISE:
            if (noise, steps, count) in {(c["noise"], c["steps"], c["samples"]) for c in cells}:
                continue
            cells.append(cell(loaded, judge, frechet, noise, steps, count))
            classifier.console.print(cells[-1])
            write_atomic(RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    plot(cells, floors, PICTURE)
    show(cells)


if __name__ == "__main__":
    keep_freed_memory()
    typer.run(main)
