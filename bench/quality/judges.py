"""How much do the networks that judge noisy images know at each noise level?

Accuracy on the test images: a classifier's, and an image encoder's that looks for the nearest class
name.

    make judges    # writes bench/results/judges.json and bench/results/judges.png
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from picture import panels, write_png
from results import RESULTS, console, keep, start, where_and_when
from rich.table import Table
from study import DATA, DataOption
from torch import Tensor

import fastguide as fg
from fastguide.checkpoint.models import read_description
from fastguide.common.images import from_pixels
from fastguide.nets.diffuse import from_ratio, net_input
from fastguide.training import Images, load_images

TIMES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # sigma / (alpha + sigma)
BATCH = 500


@torch.no_grad()
def accuracy(
    judge: fg.Classifier | fg.TextImage,
    logits: Callable[[Tensor, Tensor], Tensor],
    images: Images,
    time: float,
) -> float:
    """Share of `images` whose class has the largest of `logits(x, t)` at a noise level."""
    generator, right = torch.Generator().manual_seed(0), 0
    ratio = torch.tensor(time / (1 - time), dtype=torch.float64)
    level = judge.process.at_ratio(float(ratio))
    alpha, sigma = (value.float() for value in from_ratio(judge.process, ratio))
    for pixels, labels in zip(images.pixels.split(BATCH), images.labels.split(BATCH), strict=True):
        clean = from_pixels(pixels)
        x = alpha * clean + sigma * torch.randn(clean.shape, generator=generator)
        t = torch.full((len(x),), level.t)
        ratios = alpha.expand(len(x)), sigma.expand(len(x))
        columns = [one.view(-1, 1, 1, 1) for one in ratios]
        found = logits(*net_input(judge.prediction, x, t, columns[0], columns[1])).argmax(1)
        right += int((found == labels).sum())
    return right / len(images.labels)


def main(
    classifier: Annotated[Path, typer.Argument(help="of `fastguide classifier`")],
    clip: Annotated[Path, typer.Argument(help="of `fastguide clip`")],
    data: DataOption = DATA,
    count: Annotated[int, typer.Option(help="of test images; a multiple of 500")] = 5000,
) -> None:
    """Measure, print, write the JSON and the picture."""
    if count < BATCH or count % BATCH:
        raise typer.BadParameter(f"count is {count}, but it should be a multiple of {BATCH}")
    one, pair = fg.load_classifier(classifier), fg.load_text_image(clip)
    test = load_images(data, "t10k", one.class_names)
    test = Images(test.pixels[:count], test.labels[:count], test.class_names)
    names = pair.text(test.class_names)
    rows: list[dict[str, float]] = []
    for time in TIMES:
        row = {
            "time": time,
            "classifier": accuracy(one, one, test, time),
            "clip": accuracy(pair, lambda x, t: pair.image(x, t) @ names.T, test, time),
        }
        rows.append(row)
    table = Table("sigma / (alpha + sigma)", "classifier", "clip", title="accuracy")
    for row in rows:
        table.add_row(f"{row['time']:.2f}", f"{row['classifier']:.1%}", f"{row['clip']:.1%}")
    console.print(table)
    content: dict[str, Any] = {
        **where_and_when(),
        "images": count,
        "steps": {
            name: read_description(folder)["training"].get("steps")
            for name, folder in (("classifier", classifier), ("clip", clip))
        },
        "logit_scale": pair.logit_scale,
        "rows": rows,
    }
    path = RESULTS / "judges.json"
    keep(path, content)
    figure, (panel,) = panels(1, (6, 4))
    for name in ("classifier", "clip"):
        panel.plot(TIMES, [row[name] for row in rows], marker="o", label=name)
    panel.axhline(1 / len(test.class_names), color="gray", linestyle=":", label="chance")
    panel.set(xlabel=r"$\sigma / (\alpha + \sigma)$", ylabel="accuracy on test images", ylim=(0, 1))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    write_png(figure, path.with_suffix(".png"), 100)


if __name__ == "__main__":
    start(main)
