"""What a caller gives as conditions, as the network takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from fastguide import ops
from fastguide.common.checks import did_you_mean, shown
from fastguide.guidance.base import Condition, Guidance
from fastguide.model import Model


def named_conditions(model: Model, guidance: Guidance | None) -> set[str]:
    """The kinds of condition that the guidance needs: "cond", "negative", "head" (a second head),
    "target" (what a classifier is to find).
    """
    names = {"cond"}
    for term in guidance.terms() if guidance is not None else ():
        if term.branch.head >= model.heads:
            raise ValueError(
                f"guidance needs a network with {term.branch.head + 1} heads, but model.heads is "
                f"{model.heads}"
            )
        names.add("head" if term.branch.head else term.branch.cond)
        if term.branch.cond == "null" and model.null is None:
            raise ValueError(
                "guidance needs the null condition beside the negative one, but model.null is None"
            )
        if term.branch.potential is not None and term.branch.potential.targets:
            names.add("target")
        channels = term.branch.channels
        if channels and channels[-1] >= model.shape[0]:
            raise ValueError(
                f"channels has {channels[-1]}, but the model has {model.shape[0]} channels"
            )
        if term.branch.cond == "random":
            _check_random(model)
    if guidance is not None and guidance.inside():
        names.add("negative")
    return names


def _check_random(model: Model) -> None:
    if isinstance(model.null, int) and model.null < 2:
        raise ValueError(
            f"guidance draws another class, but the model has {model.null}; ICG needs 2 or more"
        )
    if model.null is None:
        raise ValueError(
            "guidance draws another condition, but model.null is None: the model takes none"
        )


def bind(
    model: Model, names: Set[str], cond: Any, negative: Any, batch: int, device: torch.device
) -> dict[Condition, Any]:
    """What the network takes as `cond`, for each condition that the guidance names (`names` of
    `named_conditions`); `cond` and `negative` as in a call of `fastguide.Sampler`.
    """
    if negative is not None and not names & {"negative", "head"}:
        raise ValueError("negative is given, but the guidance has no negative branch")
    if negative is not None and "head" in names and not model.negative:
        raise ValueError(
            "negative is given, but the second head of this model takes no negative condition"
        )
    if model.null is None and "negative" in names and negative is None:
        raise ValueError(
            "negative is None, but the guidance needs a negative condition, as model.null is None"
        )
    if model.null is None and "target" in names and isinstance(as_labels(cond, model), Tensor):
        cond = None  # the network takes none: it is the classifier's
    positive = _batched("cond", cond, model, batch, device)
    other = None
    if "negative" in names or model.negative:
        other = _batched("negative", negative, model, batch, device)
    null = None
    if "null" in names or model.negative:
        null = _batched("null", None, model, batch, device)
    if not model.negative:
        found: dict[Condition, Any] = {"cond": positive, "negative": other}
        return {**found, "null": null} if "null" in names else found
    beside = other if "head" in names else null
    return {"cond": (positive, beside), "negative": (other, null), "null": (null, null)}


def numbered(name: str, value: Any, model: Model) -> Any:
    """Class labels with numbers for the names of classes and for None, the null class; lists for
    arrays.

    Raises:
        ValueError: no class has that name.
    """
    if hasattr(value, "tolist") and not isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, str) and model.class_names:
        return _class_of(name, value, model.class_names)
    if not isinstance(value, (list, tuple)):
        return value
    found = []
    for one in value:
        if hasattr(one, "item") and getattr(one, "ndim", 1) == 0:
            one = one.item()
        if isinstance(one, int) and isinstance(model.null, int) and one == model.null:
            raise _no_class(name, one, model)  # what None stands for below
        named = isinstance(one, str) and model.class_names
        one = _class_of(name, one, model.class_names) if named else one
        found.append(model.null if one is None and isinstance(model.null, int) else one)
    return found


def _class_of(name: str, text: str, class_names: Sequence[str]) -> int:
    lower = [one.lower() for one in class_names]
    if text.lower() not in lower:
        raise ValueError(
            f"{name} has {text!r}, but the classes are {', '.join(class_names)}"
            f"{did_you_mean(text, class_names)}"
        )
    return lower.index(text.lower())


def samples_of(name: str, cond: Any, model: Model) -> int | None:
    """How many samples a condition is for; None where it is one for all, or says nothing."""
    if isinstance(cond, (list, tuple)) and not cond:
        return 0
    if isinstance(model.null, int) or model.null is None:
        labels = as_labels(cond, model, name)
        if labels is not None:
            return len(labels) if labels.ndim else None
    if isinstance(model.null, int):
        return None
    leaves = [one for one in tree_flatten(cond)[0] if isinstance(one, Tensor) and one.ndim]
    return len(leaves[0]) if leaves else None


def as_labels(cond: Any, model: Model, name: str = "cond") -> Tensor | None:
    """`cond` as int64 labels, or None where it is something else."""
    cond = numbered(name, cond, model)
    if isinstance(cond, bool) or not isinstance(cond, (int, list, tuple, range, Tensor)):
        return None
    labels = cond if isinstance(cond, Tensor) else None
    if labels is None and (isinstance(cond, int) or all(isinstance(one, int) for one in cond)):
        try:
            labels = torch.tensor(cond if isinstance(cond, int) else list(cond), device="cpu")
        except (RuntimeError, ValueError, TypeError, OverflowError):
            return None
    if labels is None or labels.is_floating_point() or labels.dtype == torch.bool:
        return None
    return labels.long() if labels.ndim < 2 else None


def bind_target(model: Model, cond: Any, batch: int, device: torch.device) -> Tensor:
    """The labels int64 `[B]` that a classifier is to find: `cond` of the call."""
    labels = as_labels(cond, model)
    if labels is None:
        raise ValueError(
            f"cond is {cond!r}, but guidance by a classifier needs integer labels: as cond, or as "
            "the guidance's own labels"
        )
    if labels.ndim and len(labels) != batch:
        raise ValueError(f"cond.shape is {tuple(labels.shape)}, but there are {batch} seeds")
    return labels.expand(batch).to(device)


def bind_other(
    other: Model, model: Model, cond: Any, batch: int, device: torch.device
) -> dict[Condition, Any]:
    """What another network takes under the same condition: none where `other` has none."""
    if other.null is None and model.null is not None:
        return {"cond": None}
    return bind(other, {"cond"}, cond, None, batch, device)


def random_condition(model: Model, cond: Any, seeds: Tensor) -> Any:
    """Another condition for each sample of `cond` (of `bind`), by its seed of `seeds` int64 `[B]`:
    any other class, or Gaussian noise of the embedding's own mean and standard deviation.
    """
    if model.negative:
        return (random_condition(replace(model, negative=False), cond[0], seeds), cond[1])
    if isinstance(model.null, int):
        classes = model.null
        uniform = torch.special.ndtr(ops.noise(seeds, (1,)).squeeze(1))
        others = torch.where(cond < classes, classes - 1, classes)
        step = torch.minimum((uniform * others).long(), others - 1)
        return torch.where(cond < classes, (cond + 1 + step) % classes, step)

    def noisy(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        numbers = leaf.float().flatten(1) if leaf.ndim > 1 else leaf.float().unsqueeze(1)
        mean = numbers.mean(1, keepdim=True)
        std = numbers.std(1, keepdim=True, correction=min(1, numbers.shape[1] - 1))
        drawn = ops.noise(seeds, numbers.shape[1:])
        return (mean + std * drawn).view(leaf.shape).to(leaf.dtype)

    return tree_map(noisy, cond)


def _batched(name: str, value: Any, model: Model, batch: int, device: torch.device) -> Any:
    """`value` as batch-first tensors on `device`; the null condition for None."""
    null = model.null
    if value is None and null is None:
        return None
    if value is None:
        return tree_map(lambda leaf: _repeat(leaf, batch, device), null)
    if (
        null is None
        and not model.negative
        and not isinstance(value, Tensor)
        and not tree_flatten(value)[0]
    ):
        raise ValueError(f"{name} is {value!r}, but it should hold tensors")
    if isinstance(null, int):
        return _labels(name, value, model, batch, device)
    leaves, form = tree_flatten(value)
    if null is not None:
        expected, null_form = tree_flatten(null)
        if form != null_form:
            raise ValueError(
                f"{name} is {_structure(value)}, but it should have the structure of model.null, "
                f"{_structure(null)}, with the batch first in each tensor"
            )
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or leaf.ndim < 1 or leaf.shape[0] != batch:
            found = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(f"{name}[{i}] is {found}, but it should be a tensor [{batch}, ...]")
        if null is not None and leaf.shape[1:] != _tensor(expected[i]).shape:
            if _tensor(expected[i]).shape == (1, *leaf.shape[1:]):
                raise ValueError(
                    f"model.null[{i}].shape is {tuple(expected[i].shape)}, but it should be one "
                    f"sample without the batch, {tuple(leaf.shape[1:])}"
                )
            raise ValueError(
                f"{name}[{i}].shape is {tuple(leaf.shape)}, but the null condition's is "
                f"{tuple(_tensor(expected[i]).shape)}"
            )
    return tree_map(lambda leaf: leaf.to(device), value)


def _tensor(value: Any) -> Tensor:
    """`value` as a tensor, on the host where it is none."""
    return value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")


def _repeat(leaf: Any, batch: int, device: torch.device) -> Tensor:
    number = torch.float32 if isinstance(leaf, float) else None  # whatever torch's default is
    tensor = _tensor(leaf).to(device, number)
    return tensor.expand(batch, *tensor.shape)


def _structure(value: Any) -> str:
    """A condition in words: its dicts, lists and the shapes of its tensors."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_structure(one)}' for key, one in value.items())}}}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(_structure, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)


def _labels(name: str, value: Any, model: Model, batch: int, device: torch.device) -> Tensor:
    null: int = model.null
    value = numbered(name, value, model)
    most = null if isinstance(value, list) else null - 1  # which stands for None in a list
    try:
        labels = _tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(
            f"{name} is {shown(value)}, but it should be class labels: an int, ints, or int64 [B]"
        ) from None
    if labels.dtype.is_floating_point or labels.dtype == torch.bool or labels.is_complex():
        raise ValueError(f"{name} is {labels.dtype}, but class labels should be integers")
    labels = labels.to(torch.int64)
    labels = labels.expand(batch) if labels.ndim == 0 else labels
    if labels.shape != (batch,):
        raise ValueError(f"{name}.shape is {tuple(labels.shape)}, but there are {batch} seeds")
    bad = labels[(labels < 0) | (labels > most)]
    if bad.numel():
        raise _no_class(name, int(bad[0]), model)
    return labels.to(device)


def _no_class(name: str, label: int, model: Model) -> ValueError:
    names = f": {', '.join(model.class_names)}" if model.class_names else ""
    null = "; the null class is None" if label == model.null else ""
    return ValueError(
        f"{name} has {label}, but a class should lie in [0, {model.null - 1}]{names}{null}"
    )
