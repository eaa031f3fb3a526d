"""Networks that judge noisy images, with what goes in and out of them: what classifier and CLIP
guidance are led by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastguide.checkpoint import models as checkpoint
from fastguide.nets.encoder import Encoder
from fastguide.nets.text_image import TextImageNet, text_tokens
from fastguide.process import Noising, Prediction


@dataclass(frozen=True)
class Classifier:
    """A classifier of noisy images: `classifier(x, t)` -> logits `[B, classes]`.

    Args:
        net: `net(x, t)`; x `[B, *shape]` and t `[B]` are what the network that is guided is given.
        process, prediction: whose noise it was taught, and so what x and t are: x is
            `prediction.input_scale` times the noisy image, t is `prediction.net_time`.
        shape: one sample without the batch.
        class_names: of the logits.
        source: the folder that it was loaded from.
    """

    net: Encoder
    process: Noising
    prediction: Prediction
    shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    source: str = ""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)


@dataclass(frozen=True)
class TextImage:
    """Encoders of noisy images and of texts into one space, where an inner product, times
    `logit_scale`, is the logit of "this text is that image's".

    Args:
        net: both encoders.
        process, prediction, shape, class_names, source: as `Classifier` has them; the names are the
            texts it was taught.
    """

    net: TextImageNet
    process: Noising
    prediction: Prediction
    shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    source: str = ""

    def image(self, x: Tensor, t: Tensor) -> Tensor:
        """Unit embeddings `[B, D]`; x and t as `Classifier` is given them."""
        return self.net.image(x, t)

    def text(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings `[len(texts), D]`."""
        if isinstance(texts, str):
            raise TypeError(f"texts is {texts!r}, but it should be a list of strings")
        tokens = text_tokens(texts, self.net.text_tower.length)
        return self.net.text(tokens.to(self.net.log_scale.device))

    @property
    def logit_scale(self) -> float:
        """What inner products are multiplied by: already exponentiated, at most 100."""
        return float(self.net.scale)


def save(
    folder: str | Path,
    judge: Classifier | TextImage,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | str = torch.float32,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write `judge` to `folder`; arguments as `fastguide.save` has them."""
    stored = checkpoint.Stored(
        judge.net, judge.process, judge.prediction, judge.shape, judge.class_names
    )
    checkpoint.write(folder, stored, weights, dtype, training)


def load_classifier(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
) -> Classifier:
    """Read what `fastguide classifier` wrote, in evaluation mode.

    Raises:
        CheckpointError: there is no such folder, or it is damaged, or of another kind.
    """
    stored = checkpoint.read(folder, {"Encoder": Encoder}, device, dtype)
    return Classifier(*stored, source=str(folder))


def load_text_image(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | str = torch.float32
) -> TextImage:
    """Read what `fastguide clip` wrote, in evaluation mode.

    Raises:
        CheckpointError: there is no such folder, or it is damaged, or of another kind.
    """
    stored = checkpoint.read(folder, {"TextImageNet": TextImageNet}, device, dtype)
    return TextImage(*stored, source=str(folder))
