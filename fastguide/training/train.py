"""Training of denoisers: regression on the target of their prediction, head by head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fastguide.checkpoint import models as checkpoint
from fastguide.model import Model
from fastguide.process import VP, Noising, Prediction
from fastguide.training.data import Images
from fastguide.training.loop import Batch, LoopConfig, Report, Task, run
from fastguide.training.objective import noised
from fastguide.training.recipe import Recipe, assign
from fastguide.training.trainable import Denoiser
from fastguide.training.variance import bound_loss


@dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Settings of one run: those of the loop, and who sees which condition."""

    recipe: Recipe = field(default_factory=Recipe)


def train(
    net: Denoiser,
    images: Images,
    process: Noising,
    prediction: Prediction,
    config: TrainConfig,
    out: str | Path,
    report: Report | None = None,
    dtype: torch.dtype = torch.float32,
    initial: Mapping[str, Tensor] | None = None,
) -> Model:
    """Train `net` on `images` and write the averaged model to `out`.

    A run that was interrupted goes on from the last `state.safetensors` in `out`, to the same
    numbers as one that was not. `report(step, loss)` is called after every step.
    The weights of the finished model are stored as `dtype`; those of snapshots as fp16. `initial`
    are weights to start from (fine-tuning), by name; new ones are drawn where it is None.

    Raises:
        ValueError: the network does not fit the images or the recipe, or `out` holds the state of a
            run with other settings.
    """
    out = Path(out)
    _check(net, images, process, prediction, config)
    model = checkpoint.describe(
        net, process, prediction, tuple(images.pixels.shape[1:]), images.class_names
    )
    task = Task(
        lambda forward, batch: _loss(forward, batch, net, process, prediction, config),
        lambda folder, weights, dtype, record: checkpoint.save(
            folder, model, weights, dtype, record
        ),
        {"process": repr(process), "prediction": asdict(prediction)},
    )
    run(task, net, images, config, out, report, dtype, initial)
    return checkpoint.load(out)


def _check(
    net: Denoiser,
    images: Images,
    process: Noising,
    prediction: Prediction,
    config: TrainConfig,
) -> None:
    if net.classes not in (0, len(images.class_names)):
        raise ValueError(
            f"net has {net.classes} classes, but the data has {len(images.class_names)}"
        )
    if net.variance and not (isinstance(process, VP) and prediction.log_time is None):
        raise ValueError(
            "net predicts a variance, which needs VP and eps, x0 or v, but process is "
            f"{process} and prediction is {prediction.name!r}"
        )
    recipe = config.recipe
    if (recipe.irrelevant or recipe.negative) and net.heads != 2:
        raise ValueError("the recipe supervises a second head, but net has heads=1")
    if net.heads == 2 and not (recipe.irrelevant or recipe.negative or net.split):
        raise ValueError("net has heads=2, but the recipe never supervises the second one")
    if bool(recipe.negative) != net.negative:
        raise ValueError(
            f"recipe.negative is {recipe.negative}, but net.negative is {net.negative}"
        )


def _loss(
    forward: Callable[..., Tensor],
    batch: Batch,
    net: Denoiser,
    process: Noising,
    prediction: Prediction,
    config: TrainConfig,
) -> Tensor:
    x, t, target = noised(batch.clean, process, prediction, batch.generator)
    weights = (torch.ones(config.batch), torch.zeros(config.batch))
    cond: Tensor | tuple[Tensor, Tensor] | None = None
    if net.classes:
        rows = assign(batch.labels, net.classes, config.recipe, net.negative, net.split)
        cond, weights = (rows.cond, rows.negative) if net.negative else rows.cond, rows.head_weights
    with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
        output = forward(x, t, cond)
    outputs = output.float().chunk(2 if net.variance else net.heads, 1)
    errors = [(p - target).square().flatten(1).mean(1) for p in outputs[: net.heads]]
    if net.variance and isinstance(process, VP):
        image, variance = outputs
        bound = bound_loss(image, variance, target, t, process, prediction)
        errors = [errors[0] + bound]
    counts = weights[: net.heads]
    total = torch.stack([(w * e).sum() for w, e in zip(counts, errors, strict=True)]).sum()
    return total / torch.stack(counts).sum()
