"""The training loop: deterministic by (seed, step), resumable exactly, averaged weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from fastguide import checkpoint
from fastguide.images import from_pixels
from fastguide.model import Model
from fastguide.process import EDM, VP, Flow, Prediction
from fastguide.training.data import Images
from fastguide.training.objective import cosine_rate, noised
from fastguide.training.posthoc import PowerAverages, gamma_of
from fastguide.training.recipe import Recipe, assign
from fastguide.training.trainable import Trainable
from fastguide.training.variance import bound_loss


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run.

    Args:
        steps, batch, rate, warmup: AdamW with betas (0.9, 0.99), linear warm-up and cosine decay.
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
    recipe: Recipe = field(default_factory=Recipe)

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


def train(
    net: Trainable,
    images: Images,
    process: VP | EDM | Flow,
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
    settings = json.dumps(
        {
            "net": net.config,
            "process": repr(process),
            "prediction": asdict(prediction),
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
    start = _resume(out / "state.safetensors", settings, parameters, averages, optimizer)
    forward = torch.compile(net) if config.compile else net
    model = checkpoint.describe(
        net, process, prediction, tuple(images.pixels.shape[1:]), images.class_names
    )
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate * cosine_rate(step, config.steps, config.warmup)
        loss = _loss(forward, net, images, process, prediction, config, step)
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
            checkpoint.save(out / f"snapshot-{done}", model, average, torch.float16, record)
        if config.lengths and (done % config.keep_every == 0 or done == config.steps):
            powers.save(out, done)
        if done == config.steps:
            checkpoint.save(out, model, average, dtype, record)
        if done % config.save_every == 0 or done == config.steps:
            _save_state(out / "state.safetensors", settings, done, parameters, averages, optimizer)
    return checkpoint.load(out)


def _check(
    net: Trainable,
    images: Images,
    process: VP | EDM | Flow,
    prediction: Prediction,
    config: TrainConfig,
) -> None:
    net.check_shape(tuple(images.pixels.shape[1:]))
    if net.classes not in (0, len(images.class_names)):
        raise ValueError(
            f"net has {net.classes} classes, but the data has {len(images.class_names)}"
        )
    if config.batch > len(images.labels):
        raise ValueError(f"batch is {config.batch}, but there are {len(images.labels)} images")
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


def batch_indices(count: int, batch: int, seed: int, step: int) -> Tensor:
    """The images of `step`: every epoch is a permutation of its own; a remainder is left out."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)[place * batch : (place + 1) * batch]


def _loss(
    forward: Callable[..., Tensor],
    net: Trainable,
    images: Images,
    process: VP | EDM | Flow,
    prediction: Prediction,
    config: TrainConfig,
    step: int,
) -> Tensor:
    index = batch_indices(len(images.labels), config.batch, config.seed, step)
    clean = from_pixels(images.pixels[index])
    generator = torch.Generator().manual_seed(config.seed * 7_368_787 + step)
    x, t, target = noised(clean, process, prediction, generator)
    weights = (torch.ones(config.batch), torch.zeros(config.batch))
    cond: Tensor | tuple[Tensor, Tensor] | None = None
    if net.classes:
        rows = assign(images.labels[index], net.classes, config.recipe, net.negative, net.split)
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


def _save_state(
    path: Path,
    settings: str,
    step: int,
    parameters: dict[str, nn.Parameter],
    averages: Mapping[str, dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = {}
    for name, value in parameters.items():
        moments = optimizer.state[value]
        tensors[f"weights.{name}"] = value.detach().contiguous()
        for kind, average in averages.items():
            tensors[f"{kind}.{name}"] = average[name].contiguous()
        tensors[f"exp_avg.{name}"] = moments["exp_avg"].contiguous()
        tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"].contiguous()
    metadata = {"settings": settings, "step": str(step)}
    checkpoint.write_atomic(path, tensors_to_bytes(tensors, metadata))


def _resume(
    path: Path,
    settings: str,
    parameters: dict[str, nn.Parameter],
    averages: Mapping[str, dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
) -> int:
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata.get("settings") != settings:
                raise ValueError(
                    f"{path} is the state of a run with other settings; choose another folder, "
                    "or remove it to start anew"
                )
            step = int(metadata["step"])
            for name, value in parameters.items():
                with torch.no_grad():
                    value.copy_(file.get_tensor(f"weights.{name}"))
                    for kind, average in averages.items():
                        average[name].copy_(file.get_tensor(f"{kind}.{name}"))
                optimizer.state[value] = {"step": torch.tensor(float(step))}
                for moment in ("exp_avg", "exp_avg_sq"):
                    # laid out as the weights are: the fused optimizer goes through memory
                    laid = torch.empty_like(value, requires_grad=False)
                    optimizer.state[value][moment] = laid.copy_(file.get_tensor(f"{moment}.{name}"))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; remove it to start anew") from error
    return step
