"""Guidance by the gradient of a classifier, of an image encoder, or of any energy.

With g the gradient with respect to x, `eps + weight (-sigma g)` in every prediction and with every
solver (Dhariwal and Nichol 2021, algorithm 2); where alpha is 0, and x holds nothing of an image,
nothing is added. weight 0 is off. No condition of the network is needed.

Where the denoised image is clamped, it is clamped first and led then, and not clamped again, as in
ADM: what the noise is re-derived from is the led image. (Within APG and the like, or `rescale`, a
gradient counts as any delta, and the clamp comes last.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastguide.common.checks import check_name, check_number
from fastguide.guidance.base import Amount, Branch, Factor, Guidance, Term
from fastguide.guidance.potential import Of, Potential

Form = Literal["score", "mean"]


@runtime_checkable
class TextEncoders(Protocol):
    """What `fastguide.TextImage` is."""

    class_names: tuple[str, ...]

    def image(self, x: Tensor, t: Tensor) -> Tensor: ...
    def text(self, texts: Sequence[str]) -> Tensor: ...
    @property
    def logit_scale(self) -> float: ...


def _as_labels(labels: Any) -> Any:
    try:
        return torch.as_tensor(labels, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return labels  # which is refused


def _callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} is {value!r}, but it should be callable")


@dataclass(frozen=True, eq=False)
class ClassifierGuidance(Guidance):
    """Classifier guidance (Dhariwal and Nichol 2021): `weight` times the gradient of
    `log p(label | x)`, by a classifier of noisy images (`fastguide classifier` trains one).

    Args:
        classifier: `classifier(x, t) -> logits [B, classes]`, x and t as the network gets them.
        weight: 0 is off. Published: 1.0, 0.5, 1.0, 4.0 at 64, 128, 256, 512 pixels; 10 for an
            unconditional network.
        labels: int64 `[B]`, or ints; by default the call's `cond`.
        form: "score" moves the prediction (algorithm 2, DDIM); "mean" moves the mean of the
            solver's noise by its variance times the gradient, per element where the network
            predicts a variance (algorithm 1, DDPM), and needs a solver that draws noise.
    """

    classifier: Callable[[Tensor, Tensor], Tensor] = field(metadata={"loads": "classifier"})
    weight: Amount
    labels: Tensor | Sequence[int] | None = None
    form: Form = "score"
    schedule: Factor = None
    every: int = 1

    def __post_init__(self) -> None:
        _callable("classifier", self.classifier)
        _check_form(self.form)
        if self.labels is not None and not isinstance(self.labels, Tensor):
            object.__setattr__(self, "labels", _as_labels(self.labels))
        if self.labels is not None and (
            not isinstance(self.labels, Tensor)
            or self.labels.ndim != 1
            or self.labels.dtype != torch.int64
        ):
            raise ValueError(f"labels is {self.labels!r}, but it should be an int64 tensor [B]")
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        potential = Potential(
            hash((id(self.classifier), id(self.labels))),
            self._log_probability,
            "classifier",
            targets=self.labels is None,
            mean=self.form == "mean",
        )
        return (_term(potential, self),)

    def _log_probability(self, x: Tensor, t: Tensor, target: Any) -> Tensor:
        logits = self.classifier(x, t)
        labels = self.labels.to(x.device) if isinstance(self.labels, Tensor) else target
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                f"classifier returned {_form(logits)}, but it should return logits "
                f"({len(x)}, classes)"
            )
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels is {_form(labels)}, but there are {len(x)} samples")
        return F.log_softmax(logits.float(), 1).gather(1, labels[:, None]).squeeze(1)


@dataclass(frozen=True, eq=False)
class CLIPGuidance(Guidance):
    """CLIP guidance (GLIDE, Nichol et al. 2021): `weight` times the gradient of the similarity
    `logit_scale <z_text, z_image(x, t)>` of normalised embeddings.

    Args:
        image_encoder: `image_encoder(x, t) -> [B, D]`, one for noisy images: x and t as the network
            gets them (`fastguide clip` trains one); or a `fastguide.TextImage`.
        text_embedding: `[D]` for all samples, `[B, D]`, or a function that gives `[B, D]` for the
            labels of the call's `cond`, int64 `[B]`. With a `TextImage` a text will do, and None
            for its `class_names` by those labels.
        weight: 0 is off. Published: 3.
        logit_scale: the encoders' own; 100 for OpenAI's. None for that of a `TextImage`, else 100.
        of: "denoised" gives the encoder the denoised image instead, for an encoder of clean images,
            through a backward pass of the network; t is then 0.
        form: as for `ClassifierGuidance`; "mean" is GLIDE's own.
    """

    image_encoder: Callable[[Tensor, Tensor], Tensor] | TextEncoders = field(
        metadata={"loads": "text_image"}
    )
    text_embedding: Tensor | Callable[[Tensor], Tensor] | str | None
    weight: Amount
    logit_scale: float | None = None
    of: Of = "x"
    schedule: Factor = None
    every: int = 1
    form: Form = "score"

    def __post_init__(self) -> None:
        if not isinstance(self.image_encoder, TextEncoders):
            _callable("image_encoder", self.image_encoder)
            if not callable(self.text_embedding):
                _check_text(self.text_embedding)
        elif self.text_embedding is None and not self.image_encoder.class_names:
            raise ValueError("text_embedding is None, but the image_encoder has no class_names")
        elif not (callable(self.text_embedding) or isinstance(self.text_embedding, str | None)):
            _check_text(self.text_embedding)
        _check_of(self.of)
        _check_form(self.form)
        if self.logit_scale is not None:
            check_number("logit_scale", self.logit_scale)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        text = self.text_embedding
        named = text if text is None or isinstance(text, str) else id(text)
        key = hash((id(self.image_encoder), named, self.logit_scale))
        by_label = text is None or callable(text)
        potential = Potential(
            key, self._similarity, "image_encoder", self.of, by_label, self.form == "mean"
        )
        return (_term(potential, self),)

    @cached_property
    def _embedding(self) -> Tensor | Callable[[Tensor], Tensor]:
        encoders, text = self.image_encoder, self.text_embedding
        if not isinstance(encoders, TextEncoders) or not isinstance(text, str | None):
            return text  # type: ignore[return-value]  # as was checked
        with torch.no_grad():
            found = encoders.text(encoders.class_names if text is None else [text])
        return found.__getitem__ if text is None else found[0]

    def _similarity(self, x: Tensor, t: Tensor, target: Any) -> Tensor:
        encoders, text, scale = self.image_encoder, self._embedding, self.logit_scale
        if isinstance(encoders, TextEncoders):
            scale = encoders.logit_scale if scale is None else scale
            image = encoders.image(x, t)
        else:
            image = encoders(x, t)
        if not isinstance(text, Tensor):
            text = text(target)
            _check_text(text)
        text = text.detach().to(x.device, torch.float32)
        wanted = (len(x), text.shape[-1])
        if not isinstance(image, Tensor) or tuple(image.shape) != wanted:
            raise ValueError(
                f"image_encoder returned {_form(image)}, but it should return {wanted}"
            )
        if text.ndim == 2 and len(text) != len(x):
            raise ValueError(f"text_embedding is {_form(text)}, but there are {len(x)} samples")
        similarity = F.cosine_similarity(image.float(), text.expand(wanted), dim=1, eps=1e-12)
        return (100.0 if scale is None else scale) * similarity


@dataclass(frozen=True, eq=False)
class EnergyGuidance(Guidance):
    """Guidance to low energy: `weight` times the gradient of `-energy`.

    Args:
        energy: `energy(x, t) -> [B]`, one scalar per sample; x and t as the network gets them.
        weight: 0 is off.
        of: "x", or "denoised" for an energy of the denoised image (diffusion posterior sampling,
            universal guidance), through a backward pass of the network; t is then 0.
        form: as for `ClassifierGuidance`.
    """

    energy: Callable[[Tensor, Tensor], Tensor]
    weight: Amount
    of: Of = "x"
    schedule: Factor = None
    every: int = 1
    form: Form = "score"

    def __post_init__(self) -> None:
        _callable("energy", self.energy)
        _check_of(self.of)
        _check_form(self.form)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        mean = self.form == "mean"
        potential = Potential(id(self.energy), self._value, "energy", self.of, mean=mean)
        return (_term(potential, self),)

    def _value(self, x: Tensor, t: Tensor, target: Any) -> Tensor:
        energy = self.energy(x, t)
        if not isinstance(energy, Tensor) or energy.shape != x.shape[:1]:
            raise ValueError(
                f"energy returned {_form(energy)}, but it should return one scalar per sample, "
                f"({len(x)},)"
            )
        return -energy


def _form(value: object) -> str:
    """The shape of a tensor, or what it is instead."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else repr(value)


def _check_text(text: object) -> None:
    if not isinstance(text, Tensor) or text.ndim not in (1, 2) or not text.is_floating_point():
        found = f"{text.dtype} {tuple(text.shape)}" if isinstance(text, Tensor) else repr(text)
        raise ValueError(f"text_embedding is {found}, but it should be floats [D] or [B, D]")


def _check_form(form: str) -> None:
    check_name("form", form, get_args(Form))


def _check_of(of: str) -> None:
    check_name("of", of, get_args(Of))


def _term(potential: Potential, guidance: Any) -> Term:
    branch = Branch(potential=potential, every=guidance.every)
    return Term(branch, guidance.weight, 0.0, "weight", guidance.schedule)
