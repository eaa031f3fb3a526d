"""Training of the networks that judge noisy images: a classifier, or a pair of encoders.

The pair learns by CLIP's loss (Radford et al. 2021, figure 3): each image is to find its text among
those of the batch, each text its image. Where texts are class names, many pairs of a batch share
theirs; such a pair is no negative of the other, so it is left out of the other's softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastguide.checkpoint.judges import (
    Classifier,
    TextImage,
    load_classifier,
    load_text_image,
    save,
)
from fastguide.nets import Encoder, TextImageNet
from fastguide.nets.text_image import text_tokens
from fastguide.process import Noising, Prediction
from fastguide.training.data import Images
from fastguide.training.loop import Batch, LoopConfig, Report, Task, run
from fastguide.training.objective import noised_alike


@dataclass(frozen=True)
class JudgeConfig(LoopConfig):
    """Settings of one run: those of the loop, shorter by default."""

    steps: int = 2000
    ema: float = 0.99


def train_classifier(
    net: Encoder,
    images: Images,
    process: Noising,
    prediction: Prediction,
    config: LoopConfig,
    out: str | Path,
    report: Report | None = None,
    dtype: torch.dtype = torch.float32,
) -> Classifier:
    """Teach `net` the classes of noised `images`, by cross-entropy; arguments as `train` has them.

    Raises:
        ValueError: the network does not fit the images, or `out` holds the state of a run with
            other settings.
    """
    if net.outputs != len(images.class_names):
        raise ValueError(
            f"net has {net.outputs} outputs, but the data has {len(images.class_names)} classes"
        )

    def loss(forward: Callable[..., Tensor], batch: Batch) -> Tensor:
        x, t = noised_alike(batch.clean, process, prediction, batch.generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
            logits = forward(x, t)
        return F.cross_entropy(logits.float(), batch.labels)

    judge = Classifier(net, process, prediction, _shape(images), images.class_names)
    _run(judge, loss, images, config, out, report, dtype)
    return load_classifier(out)


def train_text_image(
    net: TextImageNet,
    images: Images,
    process: Noising,
    prediction: Prediction,
    config: LoopConfig,
    out: str | Path,
    report: Report | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextImage:
    """Teach `net` noised `images` and the names of their classes; arguments as `train` has them.

    Raises:
        ValueError: the network does not fit the images or their names, or `out` holds the state of
            a run with other settings.
    """
    names = images.class_names
    tokens = text_tokens(names, net.text_tower.length, fill=True)
    if len(tokens.unique(dim=0)) != len(names):
        raise ValueError(f"class_names are {names}, but two of them are the same text")

    def loss(forward: Callable[..., Any], batch: Batch) -> Tensor:
        x, t = noised_alike(batch.clean, process, prediction, batch.generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
            of_image, of_text = forward(x, t, tokens[batch.labels])
        return contrastive(of_image.float(), of_text.float(), net.scale, batch.labels)

    judge = TextImage(net, process, prediction, _shape(images), names)
    _run(judge, loss, images, config, out, report, dtype, texts=names)
    return load_text_image(out)


def _run(
    judge: Classifier | TextImage,
    loss: Callable[[Callable[..., Any], Batch], Tensor],
    images: Images,
    config: LoopConfig,
    out: str | Path,
    report: Report | None,
    dtype: torch.dtype,
    **more: Any,
) -> None:
    """Train the judge's network by `loss`, and store it; `more` tells this run from another."""
    about = {"process": repr(judge.process), "prediction": asdict(judge.prediction), **more}
    task = Task(loss, lambda folder, *rest: save(folder, judge, *rest), about)
    run(task, judge.net, images, config, Path(out), report, dtype)


def contrastive(of_image: Tensor, of_text: Tensor, scale: Tensor, texts: Tensor) -> Tensor:
    """CLIP's loss of unit embeddings `[B, D]`, row i of both a pair; `texts` `[B]` are equal where
    the texts are. Entry (i, j) of the logits, for i != j of one text, is left out: the mean of

        -log(e_ii / (e_ii + sum_(j of other texts) e_ij)),  e = exp(scale of_image of_text^T),

    over the rows i and, likewise, over the columns.
    """
    logits = scale * of_image @ of_text.T
    pair = torch.arange(len(texts), device=texts.device)
    other = (texts.unsqueeze(1) == texts) & (pair.unsqueeze(1) != pair)
    logits = logits.masked_fill(other, -torch.inf)
    return (F.cross_entropy(logits, pair) + F.cross_entropy(logits.T, pair)) / 2


def _shape(images: Images) -> tuple[int, ...]:
    return tuple(images.pixels.shape[1:])
