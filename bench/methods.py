"""What does each guidance method do for the bundled model? Judged by a classifier.

For every method of a family and every weight, with the classes as conditions and without any: the
Frechet distance of the classifier's features to the whole test set, the share of samples of the
requested class, and the seconds a sample. Results are written after every point; a run that was
stopped goes on.

    make methods    # all families: bench/results/<family>.json and .png
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import classifier
import torch
import typer
from machine import where_and_when
from picture import panels, write_png
from rich.table import Table
from torch import Tensor

import fastguide as fg
from fastguide.checkpoint import write_atomic
from fastguide.images import to_pixels
from fastguide.memory import keep_freed_memory
from fastguide.training.data import load_images

HERE = Path(__file__).resolve().parent
DATA, CACHE, RESULTS = (
    Path("/usr/share/datasets/fashion-mnist"),
    HERE.parent / "out",
    HERE / "results",
)
BATCH, STEPS = 250, 25
Method = Callable[[float], fg.Guidance]
# name -> guidance of a weight, the weights, and whether it means anything without a condition
FAMILIES: dict[str, dict[str, tuple[Method, tuple[float, ...], bool]]] = {
    "perturbation": {
        "PAG": (fg.PAG, (0.5, 1.0, 2.0), True),
        "SEG": (fg.SEG, (0.5, 1.0, 2.0), True),
        "SAG": (fg.SAG, (0.2, 0.5, 1.0), True),
        "SLG": (fg.SLG, (0.25, 0.5, 1.0), True),
        "TPG": (lambda weight: fg.TPG(weight, layers=[1, 2]), (0.25, 0.5, 1.0), True),
        "NAG": (fg.NAG, (2.0, 3.0, 5.0), False),
        "CFG": (fg.CFG, (1.25, 1.5, 2.0), False),
    },
}


class Judge:
    """The model, the classifier, and what both measure of a guidance."""

    def __init__(self, model: fg.Model, data: Path, cache: Path, samples: int) -> None:
        train, test = (load_images(data, split, model.class_names) for split in ("train", "t10k"))
        self.model, self.samples = model, samples
        self.classifier = classifier.load_or_train(cache, train, test)
        self.frechet = classifier.FrechetTo(self.classifier.judge(test.pixels)[0])
        self.labels = torch.arange(samples) % len(model.class_names)

    def measure(self, guidance: fg.Guidance | None, conditional: bool) -> dict[str, Any]:
        """Distance, its standard error, accuracy and seconds a sample."""
        sampler = fg.Sampler(self.model, guidance, steps=STEPS)
        features, found, seconds = [], [], 0.0
        for start in range(0, self.samples, BATCH):
            labels = self.labels[start : start + BATCH]
            began = time.perf_counter()
            images = sampler(labels if conditional else None, range(start, start + len(labels)))
            seconds += time.perf_counter() - began
            one = self.classifier.judge(to_pixels(images))
            features.append(one[0])
            found.append(one[1])
        whole: Tensor = torch.cat(features)
        left_out = self.frechet.leave_out(whole, len(self.model.class_names))
        right = (torch.cat(found) == self.labels).double().mean()
        return {
            "frechet": self.frechet(whole),
            "frechet_error": classifier.jackknife_error(left_out),
            "accuracy": float(right) if conditional else None,
            "seconds_per_sample": seconds / self.samples,
        }


def plot(results: dict[str, Any], path: Path) -> None:
    """Distance over relative weight with and without conditions, and accuracy."""
    figure, axes = panels(3, (13.0, 4.0))
    rows = results["rows"]
    for axis, conditional, figure_of in (
        (axes[0], True, "frechet"),
        (axes[1], False, "frechet"),
        (axes[2], True, "accuracy"),
    ):
        here = [row for row in rows if row["conditional"] == conditional]
        plain = next((row for row in here if row["method"] == "unguided"), None)
        if plain is not None:
            axis.axhline(plain[figure_of], color="k", linestyle=":", label="unguided")
        for name in dict.fromkeys(row["method"] for row in here if row["method"] != "unguided"):
            line = [(row["weight"], row[figure_of]) for row in here if row["method"] == name]
            axis.plot(*zip(*line, strict=True), marker="o", label=name)
        axis.set(
            xlabel="weight (NAG, CFG: scale)",
            ylabel={"frechet": "Frechet distance", "accuracy": "share of the right class"}[
                figure_of
            ],
            title="with conditions" if conditional else "without conditions",
        )
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    axes[2].legend()
    write_png(figure, path, 100)


def show(results: dict[str, Any]) -> None:
    """All rows as a table."""
    table = Table("method", "weight", "condition", "Frechet", "right", "s / sample")
    for row in results["rows"]:
        right = "" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        table.add_row(
            row["method"],
            f"{row['weight']:g}",
            "class" if row["conditional"] else "none",
            f"{row['frechet']:.2f} +- {row['frechet_error']:.2f}",
            right,
            f"{row['seconds_per_sample']:.4f}",
        )
    classifier.console.print(table)


def main(
    family: Annotated[str, typer.Argument(help=f"one of {', '.join(FAMILIES)}")] = "perturbation",
    model: Annotated[str, typer.Option(help="name of a bundled model, or a folder")] = "fashion",
    samples: Annotated[int, typer.Option(help="of a point; a multiple of 100")] = 500,
    dtype: Annotated[str, typer.Option(help="of the network: fp32 or bf16")] = "bf16",
    data: Annotated[Path, typer.Option(help="folder with Fashion-MNIST's IDX files")] = DATA,
    cache: Annotated[Path, typer.Option(help="folder of the classifier")] = CACHE,
) -> None:
    """Measure, write and plot one family."""
    loaded = fg.load(model, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    judge = Judge(loaded, data, cache, samples)
    assert isinstance(loaded.net, torch.nn.Module)
    arguments = {"samples": samples, "steps": STEPS, "dtype": dtype}
    digest = classifier.digest(loaded.net)
    path = RESULTS / f"{family}.json"
    results: dict[str, Any] = {
        **where_and_when(),
        "arguments": arguments,
        "model_sha256": digest,
        "classifier": judge.classifier.about,
        "rows": [],
    }
    if path.is_file():
        before = json.loads(path.read_text())
        if before["arguments"] == arguments and before["model_sha256"] == digest:
            results = before
    rows: list[dict[str, Any]] = results["rows"]
    done = {(row["method"], row["weight"], row["conditional"]) for row in rows}
    points: list[tuple[str, float, fg.Guidance | None, bool]] = [
        ("unguided", 0.0, None, True),
        ("unguided", 0.0, None, False),
    ]
    for name, (method, weights, unconditional) in FAMILIES[family].items():
        for weight in weights:
            points += [
                (name, weight, method(weight), c) for c in (True, False)[: 1 + unconditional]
            ]
    for name, weight, guidance, conditional in points:
        if (name, weight, conditional) in done:
            continue
        row = {"method": name, "weight": weight, "conditional": conditional}
        rows.append({**row, **judge.measure(guidance, conditional)})
        classifier.console.print(rows[-1])
        write_atomic(path, (json.dumps(results, indent=1) + "\n").encode())
    plot(results, path.with_suffix(".png"))
    show(results)


if __name__ == "__main__":
    keep_freed_memory()
    typer.run(main)
