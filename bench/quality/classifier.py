"""How real do samples look to a small CNN? It names their class and measures a Frechet distance.

The CNN is trained on the real train images once and cached. Its 128 hidden features are the space
of the distance, so distances compare only under one and the same trained network.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from results import console
from rich.progress import track
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide.common.files import write_atomic
from fastguide.common.images import from_pixels
from fastguide.training.data import Images

FLOOR = 0.91  # test accuracy below which the classifier is no judge of anything
GROUPS = 10  # of the jackknife
RECIPE = {"epochs": 6, "batch": 256, "rate": 4e-3, "decay": 0.02, "shift": 1, "seed": 0}
_NAME = "fashion-classifier"
_T = TypeVar("_T")


def shown(work: Sequence[_T], what: str) -> Iterable[_T]:
    """`work` under a progress bar that goes when it is done; none where output is no terminal."""
    hidden = not console.is_terminal
    return track(work, what, console=console, transient=True, disable=hidden)


class ClassifierError(ValueError):
    """The cached classifier is damaged or of another kind, or the trained one is too weak."""


class CNN(nn.Module):
    """Three convolutions: images fp32 `[B, 1, 28, 28]` -> (features `[B, 128]`, logits)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(1, 32),
            *_convolution(32, 64),
            *_convolution(64, 128),
            nn.Flatten(),
            nn.Linear(128 * 3 * 3, 128, bias=False),
            nn.BatchNorm1d(128),
            nn.ReLU(),
        )
        self.out = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images.contiguous(memory_format=torch.channels_last))
        return features, self.out(features)


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)


@dataclass(frozen=True)
class Classifier:
    """A trained CNN and what is known of it: test accuracy, training seconds, SHA-256s."""

    net: CNN
    about: dict[str, Any]

    @torch.no_grad()
    def judge(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(features fp64 `[N, 128]`, classes int64 `[N]`) of uint8 images `[N, 1, 28, 28]`."""
        parts = [self.net(from_pixels(part)) for part in pixels.split(500)]
        features, logits = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
        return features.double(), logits.argmax(1)

    @torch.no_grad()
    def score(self, features: Tensor) -> float:
        """`exp E[KL(p(y | x) | p(y))]` of images by their features: the Inception Score's formula,
        with this classifier.
        """
        rows = self.net.out(features.float()).double().log_softmax(1)
        mean = rows.exp().mean(0).log()
        return math.exp(float((rows.exp() * (rows - mean)).sum(1).mean()))


def load_or_train(folder: Path, train: Images, test: Images) -> Classifier:
    """The classifier cached in `folder`, or else a new one, trained on `train` and cached there.

    Raises:
        ClassifierError: the cache is damaged or was made by another recipe or from other images, or
            the test accuracy is below FLOOR.
    """
    weights, description = folder / f"{_NAME}.safetensors", folder / f"{_NAME}.json"
    made_by = {"recipe": RECIPE, "images": _sha256(_raw(train) + _raw(test))}
    torch.manual_seed(RECIPE["seed"])
    net = CNN(len(train.class_names)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if description.is_file():
        about = _load(net, weights, description, made_by)
    else:
        start = time.perf_counter()
        _train(net, train)
        seconds = time.perf_counter() - start
        found = Classifier(net, {}).judge(test.pixels)[1]
        data = _to_bytes(net)
        about = {
            "test_accuracy": float((found == test.labels).double().mean()),
            "train_seconds": round(seconds, 1),
            "parameters": sum(p.numel() for p in net.parameters()),
            "sha256": _sha256(data),
            **made_by,
        }
    if about["test_accuracy"] < FLOOR:
        raise ClassifierError(
            f"the classifier's test accuracy is {about['test_accuracy']:.4f}, but it should be "
            f"{FLOOR} or more"
        )
    if not description.is_file():
        write_atomic(weights, data)
        write_atomic(description, (json.dumps(about, indent=2) + "\n").encode())
    return Classifier(net, about)


def _load(net: CNN, weights: Path, description: Path, made_by: dict[str, Any]) -> dict[str, Any]:
    try:
        about = json.loads(description.read_text())
        data = weights.read_bytes()
        intact = about["sha256"] == _sha256(data) and about["test_accuracy"] >= 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClassifierError(
            f"{description} is damaged, delete it to train anew: {error!r}"
        ) from error
    if not intact:
        raise ClassifierError(f"{weights} is not what {description} describes, delete both")
    for name, value in made_by.items():
        if about.get(name) != value:
            raise ClassifierError(
                f"{description} has {name} {about.get(name)!r}, but now it is {value!r}; "
                "delete the file to train anew, or name another cache"
            )
    net.load_state_dict(tensors_from_bytes(data))
    net.eval()
    return about


def _train(net: CNN, images: Images) -> None:
    """AdamW, one cycle of the rate, images shifted by up to `shift` pixels; ends in eval()."""
    count, batch = len(images.labels), int(RECIPE["batch"])
    batches = [
        index
        for _ in range(int(RECIPE["epochs"]))
        for index in torch.randperm(count).split(batch)[: count // batch]
    ]
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=RECIPE["decay"])
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RECIPE["rate"], len(batches), pct_start=0.2
    )
    net.train()
    for index in shown(batches, "training the classifier"):
        _, logits = net(_shifted(from_pixels(images.pixels[index]), int(RECIPE["shift"])))
        loss = F.cross_entropy(logits, images.labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
    net.eval()


def _shifted(images: Tensor, most: int) -> Tensor:
    """Every image moved by up to `most` pixels along each axis, with black (-1) from outside."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (most, most, most, most), value=-1.0)
    down, right = torch.randint(2 * most + 1, (2, batch, 1))
    rows = (torch.arange(height) + down).unsqueeze(2)
    columns = (torch.arange(width) + right).unsqueeze(1)
    return padded[torch.arange(batch).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)


class FrechetTo:
    """Frechet distance of features to the fixed set `features` fp64 `[N, D]`, both as Gaussians.

    `|m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)` (Dowson and Landau 1982), with unbiased
    covariances. It is biased upwards by about D / N' of its scale: compare equal sizes N' only.
    """

    def __init__(self, features: Tensor) -> None:
        self.mean, self.covariance = features.mean(0), features.T.cov()
        values, vectors = torch.linalg.eigh(self.covariance)
        self.root = vectors * values.clamp_min(0).sqrt() @ vectors.T

    def __call__(self, features: Tensor) -> float:
        mean, covariance = features.mean(0), features.T.cov()
        product = torch.linalg.eigvalsh(self.root @ covariance @ self.root)
        spread = (
            self.covariance.trace() + covariance.trace() - 2 * product.clamp_min(0).sqrt().sum()
        )
        return float((mean - self.mean).square().sum() + spread)

    def leave_out(self, features: Tensor, classes: int) -> list[float]:
        """The distance without each of GROUPS groups; rows are of classes 0, 1, ..., 0, 1, ..."""
        group = torch.arange(len(features)) // classes % GROUPS
        return [self(features[group != left_out]) for left_out in range(GROUPS)]


def jackknife_error(left_out: Sequence[float]) -> float:
    """Standard error of a figure from its values without each group (Tukey's delete-a-group)."""
    values = torch.tensor(left_out, dtype=torch.float64)
    return float(((len(values) - 1) * values.var(correction=0)).sqrt())


def balanced_draws(labels: Tensor, size: int, most: int) -> list[Tensor]:
    """Indices of up to `most` disjoint random sets of `size` images, every class equally often."""
    generator = torch.Generator().manual_seed(0)
    classes = [(labels == c).nonzero().flatten() for c in range(int(labels.max()) + 1)]
    share = size // len(classes)
    draws = min(most, min(len(members) for members in classes) // share)
    shuffled = [c[torch.randperm(len(c), generator=generator)][: draws * share] for c in classes]
    return list(torch.cat([s.view(draws, share) for s in shuffled], 1)) if draws else []


def digest(net: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    return _sha256(_to_bytes(net))


def _to_bytes(net: nn.Module) -> bytes:
    return tensors_to_bytes({name: v.contiguous() for name, v in net.state_dict().items()})


def _raw(images: Images) -> bytes:
    return images.pixels.numpy().tobytes() + images.labels.numpy().tobytes()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
