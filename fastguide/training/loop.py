"""The training loop: deterministic by (seed, step), resumable exactly, averaged weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastguide.checkpoint import models as checkpoint
from fastguide.common.images import from_pixels
from fastguide.training.data import Images
from fastguide.training.objective import cosine_rate
from fastguide.training.posthoc import PowerAverages, gamma_of
from fastguide.training.state import resume, save_state
from fastguide.training.trainable import Trainable


@dataclass(frozen=True)
class LoopConfig:
    """Settings of one run.

    Args:
        steps: of AdamW with betas (0.9, 0.99).
        batch: images a step.
        rate: of learning, after the warm-up; from there half a cosine takes it to 0.
        warmup: steps in which the rate rises.
        ema: decay of the averaged weights, reached gradually: min(ema, (1 + step) / (10 + step)).
        seed: of the initial weights, the order of the images, noise and times.
        autocast: bf16 matrix products with fp32 weights.
        compile: `torch.compile` the network (faster steps after a minute of compilation).
        save_every: steps between resumable states.
        snapshots: steps at which the averaged weights are kept as a model of their own.
        lengths: of the power-function averages that are kept for `fastguide ema`; none by default.
        keep_every: steps between those.
    """

    steps: int = 8000
    batch: int = 128
    rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    seed: int = 0
    autocast: bool = True
    compile: bool = False
    save_every: int = 500
    snapshots: tuple[int, ...] = ()
    lengths: tuple[float, ...] = ()
    keep_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every", "keep_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but it should be 1 or more")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate is {self.rate}, but it should be positive")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, but it should lie in [0, 1)")
        for length in self.lengths:
            gamma_of(length)
        for step in self.snapshots:
            if not 1 <= step <= self.steps:
                raise ValueError(
                    f"snapshots has {step}, but it should lie in [1, steps={self.steps}]"
                )


Report = Callable[[int, float], None]


class Batch(NamedTuple):
    """The images of one step fp32 `[B, C, H, W]`, their labels, and the source of its noise."""

    clean: Tensor
    labels: Tensor
    generator: torch.Generator


class Task(NamedTuple):
    """What is learned.

    Args:
        loss: `(forward, batch) -> loss`, where `forward` is the network or its compiled form.
        save: `(folder, weights, dtype, record)` writes a model of those weights.
        about: what tells this run from another beside the network, the settings and the data;
            JSON.
    """

    loss: Callable[[Callable[..., Any], Batch], Tensor]
    save: Callable[[Path, Mapping[str, Tensor], torch.dtype, Mapping[str, Any]], None]
    about: Mapping[str, Any]


def run(
    task: Task,
    net: Trainable,
    images: Images,
    config: LoopConfig,
    out: Path,
    report: Report | None = None,
    dtype: torch.dtype = torch.float32,
    initial: Mapping[str, Tensor] | None = None,
) -> None:
    """Train `net` for `task` and write the averaged model to `out`; arguments as `train` has them.

    Raises:
        ValueError: the network does not fit the images, or `out` holds the state of a run with
            other settings.
        FloatingPointError: the loss is not finite.
    """
    net.check_shape(tuple(images.pixels.shape[1:]))
    if config.batch > len(images.labels):
        raise ValueError(f"batch is {config.batch}, but there are {len(images.labels)} images")
    settings = json.dumps(
        {
            "net": net.config,
            **task.about,
            "config": {
                k: v for k, v in asdict(config).items() if k not in ("compile", "save_every")
            },
            "images": list(images.pixels.shape),
            "initial": None if initial is None else checkpoint.digest(initial),
        }
    )
    torch.manual_seed(config.seed)
    net.initialise()
    net.train()
    parameters = dict(net.named_parameters())
    for name, weights in (initial or {}).items():
        parameters[name].data.copy_(weights)
    average = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=config.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    powers = PowerAverages(config.lengths, parameters)
    averages = {"average": average, **{f"power.{s!r}": a for s, a in powers.averages.items()}}
    start = resume(out / "state.safetensors", settings, parameters, averages, optimizer)
    forward = torch.compile(net) if config.compile else net
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate * cosine_rate(step, config.steps, config.warmup)
        loss = task.loss(forward, batch_of(images, config, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(average.values()), [p.detach() for p in parameters.values()], 1 - decay
        )
        done = step + 1
        powers.update(done, parameters)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {done}; try a lower rate")
        if report is not None:
            report(done, value)
        record = {"steps": done, **json.loads(settings)["config"], "loss": value}
        if done in config.snapshots:
            task.save(out / f"snapshot-{done}", average, torch.float16, record)
        if config.lengths and (done % config.keep_every == 0 or done == config.steps):
            powers.save(out, done)
        if done == config.steps:
            task.save(out, average, dtype, record)
        if done % config.save_every == 0 or done == config.steps:
            save_state(out / "state.safetensors", settings, done, parameters, averages, optimizer)


def batch_of(images: Images, config: LoopConfig, step: int) -> Batch:
    """The batch of `step`."""
    index = batch_indices(len(images.labels), config.batch, config.seed, step)
    generator = torch.Generator().manual_seed(config.seed * 7_368_787 + step)
    return Batch(from_pixels(images.pixels[index]), images.labels[index], generator)


def batch_indices(count: int, batch: int, seed: int, step: int) -> Tensor:
    """The images of `step`: every epoch is a permutation of its own; a remainder is left out."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)[place * batch : (place + 1) * batch]
