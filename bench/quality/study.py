"""What the studies of a model's samples share: models, a judge, samples drawn in turns, options."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import classifier
import torch
import typer
from classifier import Classifier, FrechetTo
from results import ROOT, where_and_when
from torch import Tensor

import fastguide as fg
from fastguide.assets import bundled
from fastguide.checkpoint.models import read_description
from fastguide.common.images import to_pixels
from fastguide.training.data import Images, load_images

DATA, CACHE = Path("/usr/share/datasets/fashion-mnist"), ROOT / "out"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH = 250
DataOption = Annotated[Path, typer.Option(help="folder with Fashion-MNIST's IDX files")]
CacheOption = Annotated[Path, typer.Option(help="folder of the classifier")]
DtypeOption = Annotated[str, typer.Option(help="of the network: fp32 or bf16")]


def load_model(name: str, dtype: str) -> fg.Model:
    """A bundled model or one in a folder."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}, but it should be one of {', '.join(DTYPES)}")
    return fg.load(name, dtype=DTYPES[dtype])


Other = fg.Model | fg.Classifier | fg.TextImage


def load_other(name: str, dtype: str) -> Other:
    """What a guidance needs beside the model: another one, or what judges noisy images, in fp32."""
    if name in bundled():
        return load_model(name, dtype)
    net = read_description(Path(name))["net"]["name"]
    loaders = {"Encoder": fg.load_classifier, "TextImageNet": fg.load_text_image}
    return loaders[net](name) if net in loaders else load_model(name, dtype)


class _Blind(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.net(x, t, None)


def blinded(model: fg.Model) -> fg.Model:
    """The model, never told a condition."""
    assert isinstance(model.net, torch.nn.Module)
    return replace(model, net=_Blind(model.net), null=None, negative=False)


def digest(model: Other) -> str:
    """SHA-256 of a model's weights."""
    assert isinstance(model.net, torch.nn.Module)
    return classifier.digest(model.net)


@dataclass(frozen=True)
class Judge:
    """A classifier, and the distance of its features to those of the real test set."""

    classifier: Classifier
    frechet: FrechetTo
    train: Images

    @property
    def about(self) -> dict[str, Any]:
        return self.classifier.about

    @property
    def classes(self) -> int:
        return len(self.train.class_names)

    def labels(self, count: int) -> Tensor:
        """0, 1, ..., 9, 0, 1, ...: every class equally often."""
        return torch.arange(count) % self.classes

    def features(self, pixels: Tensor) -> Tensor:
        """fp64 `[N, 128]`."""
        return self.classifier.judge(pixels)[0]

    def figures(self, pixels: Tensor) -> dict[str, Any]:
        """Of samples of the classes `labels(N)`: the share that is of its class, the distance, its
        standard error, its values without each group, and the score of `Classifier.score`.
        """
        features, found = self.classifier.judge(pixels)
        left_out = self.frechet.leave_out(features, self.classes)
        return {
            "accuracy": float((found == self.labels(len(found))).double().mean()),
            "frechet": self.frechet(features),
            "frechet_error": classifier.jackknife_error(left_out),
            "frechet_left_out": left_out,
            "score": self.classifier.score(features),
        }


def make_judge(data: Path, cache: Path, model: fg.Model) -> Judge:
    """The judge of samples of `model`; its classifier is kept in `cache`.

    Raises:
        ValueError: `data` holds no train and test images of the model's classes and shape.
    """
    train, test = (load_images(data, split, model.class_names) for split in ("train", "t10k"))
    if train.class_names != model.class_names or not any(data.glob("t10k-*")):
        raise ValueError(
            f"data is {str(data)!r}, but it should hold IDX files of train and t10k images with "
            f"the {len(model.class_names)} classes of the model"
        )
    if tuple(test.pixels.shape[1:]) != model.shape:
        raise ValueError(
            f"data is {str(data)!r} with images {tuple(test.pixels.shape[1:])}, but the model "
            f"samples {model.shape}"
        )
    judge = classifier.load_or_train(cache, train, test)
    return Judge(judge, FrechetTo(judge.judge(test.pixels)[0]), train)


def draw(
    samplers: Sequence[fg.Sampler],
    count: int,
    labels: Tensor | None = None,
    what: str = "sampling",
    seed: int = 0,
    negative: int | None = None,
    batch: int = BATCH,
) -> list[tuple[Tensor, float]]:
    """(pixels, seconds a sample: the median of the batches) of each sampler, for `count` seeds from
    `seed` on; they take turns, batch by batch.
    """
    pixels: list[list[Tensor]] = [[] for _ in samplers]
    seconds: list[list[float]] = [[] for _ in samplers]
    for sampler in samplers:
        sampler(None if labels is None else labels[:1])  # the first call of all is slower
    for start in classifier.shown(range(0, count, batch), what):
        stop = min(start + batch, count)
        part = None if labels is None else labels[start:stop]
        for i, sampler in enumerate(samplers):
            began = time.perf_counter()
            images = sampler(part, range(seed + start, seed + stop), negative)
            seconds[i].append((time.perf_counter() - began) / (stop - start))
            pixels[i].append(to_pixels(images))
    return [(torch.cat(p), statistics.median(s)) for p, s in zip(pixels, seconds, strict=True)]


def run_of(
    arguments: dict[str, Any],
    name: str,
    model: fg.Model,
    judge: Judge,
    others: Mapping[str, Other] | None = None,
) -> dict[str, Any]:
    """What a file of results begins with: where, when and how, the models and the classifier."""
    return {
        **where_and_when(),
        "arguments": arguments,
        "model": name,
        "model_sha256": digest(model),
        "others": {key: digest(other) for key, other in (others or {}).items()},
        "classifier": judge.about,
    }


def in_common(run: dict[str, Any]) -> dict[str, Any]:
    """What all rows of one file have in common; paths and the choice of rows are not of it."""
    chosen = ("samples", "steps", "dtype", "seed_offset")
    return {
        **{name: run["arguments"][name] for name in chosen if name in run["arguments"]},
        "model_sha256": run["model_sha256"],
        "others": run.get("others", {}),
        "classifier": run["classifier"]["sha256"],
    }
