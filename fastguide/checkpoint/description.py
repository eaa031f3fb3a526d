"""`model.json`, checked before anything is made of it: every value is of its kind and range.

Counts have limits that follow from the bytes of the weights: a layer has at least one tensor, a
channel at least one number. So no description can ask for more work than its weights can pay for.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from fastguide.checkpoint.errors import CheckpointError
from fastguide.checkpoint.regular import open_regular, read_exactly
from fastguide.nets import NETS
from fastguide.process import EDM, VP, ContinuousVP, Flow, Noising, Prediction

FORMAT = 1
MOST_BYTES = 16 << 20  # of model.json: a million class names
MOST_WEIGHTS = 1 << 44
MOST_STEPS = 1_000_000  # of a process
MOST_SIDE = 1 << 20  # of an image
READERS = {  # of `fastguide`, by the kind of network
    **dict.fromkeys(NETS, "load"),
    "Encoder": "load_classifier",
    "TextImageNet": "load_text_image",
}
PROCESSES: dict[str, type[VP] | type[EDM] | type[Flow] | type[ContinuousVP]] = {
    kind.__name__: kind for kind in (VP, EDM, Flow, ContinuousVP)
}
_KEYS = {"format", "net", "process", "prediction", "shape", "class_names", "weights", "training"}


@dataclass(frozen=True)
class Description:
    """What `model.json` says.

    Args:
        net: name of the network's class; `config` are its arguments.
        process, prediction, shape, class_names: as `Model` has them.
        sha256, bytes: of the weights' file.
    """

    net: str
    config: Mapping[str, Any]
    process: Noising
    prediction: Prediction
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    sha256: str
    bytes: int

    @property
    def layers(self) -> int:
        """How many the network has at least."""
        of_config = self.config.get
        of_levels = of_config("res_blocks", 0) * len(of_config("multipliers", ()))
        return of_config("depth", 0) + of_config("text_depth", 0) + of_levels


def read_description(folder: Path, nets: Mapping[str, type[nn.Module]]) -> Description:
    """The checked content of `folder/model.json`, whose network is one of `nets`.

    Raises:
        CheckpointError: it is missing, damaged, or does not describe a model.
    """
    path = folder / "model.json"
    try:
        with open_regular(path) as (file, size):
            if size > MOST_BYTES:
                raise CheckpointError(f"{path} has {size} bytes, but at most {MOST_BYTES} are read")
            text = read_exactly(file, size, path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no model.json") from None
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is not int or version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}, but this version reads format {FORMAT}"
        )
    missing = _KEYS - {"training"} - set(content)
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}")
    try:
        return _check(content, nets)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{folder}: {error}") from None
        raise CheckpointError(f"{path} does not describe a model: {error}") from error


def parse_json(text: bytes) -> Any:
    """JSON in UTF-8; NaN, infinities and keys that come twice are errors.

    Raises:
        ValueError: it is none.
        RecursionError: it is nested too deep.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits} is too large")
        return value

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key comes twice")
        return found

    return json.loads(
        text.decode("utf-8"), parse_constant=constant, parse_float=number, object_pairs_hook=once
    )


def _check(content: Mapping[str, Any], nets: Mapping[str, type[nn.Module]]) -> Description:
    weights = _part(content, "weights")
    size = _whole(weights.get("bytes"), "weights.bytes", 1, MOST_WEIGHTS)
    sha256 = _text(weights.get("sha256"), "weights.sha256")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(
            f"weights.sha256 is {sha256[:80]!r}, but it should be 64 digits of base 16"
        )
    net = _part(content, "net")
    name = _text(net.pop("name", None), "net.name")
    if name not in nets:
        reader = f"; fastguide.{READERS[name]} reads it" if name in READERS else ""
        raise CheckpointError(f"net is {name[:80]!r}, not one of {sorted(nets)}{reader}")
    sides = _list(content["shape"], "shape", 8)
    names = _list(content["class_names"], "class_names", MOST_BYTES)
    return Description(
        name,
        _arguments(nets[name], net, size),
        _process(_part(content, "process")),
        _prediction(_part(content, "prediction")),
        tuple(_whole(side, f"shape[{i}]", 1, MOST_SIDE) for i, side in enumerate(sides)),
        tuple(_text(one, f"class_names[{i}]") for i, one in enumerate(names)),
        sha256,
        size,
    )


def _arguments(net: type[nn.Module], given: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Those of the network, by the kinds that its signature says."""
    parameters = dict(inspect.signature(net).parameters)
    _check_names("net", given, parameters)
    lacking = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if lacking:
        raise ValueError(f"net lacks {', '.join(lacking)}")
    most = size // 2  # numbers of 2 bytes
    checks: dict[str, Callable[[Any, str], Any]] = {
        "int": lambda value, name: _whole(value, name, 0, most),
        "float": _number,
        "bool": _flag,
        "Sequence[int]": lambda value, name: tuple(
            _whole(one, f"{name}[{i}]", 1, most) for i, one in enumerate(_list(value, name, 64))
        ),
    }
    return {
        name: checks[str(parameters[name].annotation)](value, f"net.{name}")
        for name, value in given.items()
    }


def _process(given: dict[str, Any]) -> Noising:
    name = _text(given.pop("name", None), "process.name")
    if name not in PROCESSES:
        raise ValueError(f"process.name is {name[:80]!r}, but it should be one of {[*PROCESSES]}")
    kind = PROCESSES[name]
    _check_names("process", given, {field.name for field in fields(kind)})
    for field, value in given.items():
        at = f"process.{field}"
        if field == "timesteps":
            _whole(value, at, 2, MOST_STEPS)
        elif field in ("zero_terminal_snr", "sub"):
            _flag(value, at)
        elif field != "betas":
            _number(value, at)
        elif isinstance(value, list):
            for i, beta in enumerate(_list(value, at, MOST_STEPS)):
                _number(beta, f"{at}[{i}]")
        else:
            _text(value, at)
    return kind(**given)


def _prediction(given: dict[str, Any]) -> Prediction:
    _check_names("prediction", given, {field.name for field in fields(Prediction)})
    for field, value in given.items():
        (_text if field == "name" else _number)(value, f"prediction.{field}")
    return Prediction(**given)


def _check_names(part: str, given: Mapping[str, Any], known: Any) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{part} has {unknown[0][:80]!r}, but only {', '.join(known)} are known")


def _part(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(content[name], dict):
        raise ValueError(f"{name} is {_short(content[name])}, but it should be an object")
    return dict(content[name])


def _list(value: Any, name: str, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{name} is {_short(value)}, but it should be a list of at most {most}")
    return value


def _whole(value: Any, name: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(
            f"{name} is {_short(value)}, but it should be a whole number from {least} to {most}"
        )
    return value


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= 1e300:
        raise ValueError(f"{name} is {_short(value)}, but it should be a number")
    return float(value)


def _flag(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{name} is {_short(value)}, but it should be true or false")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not _is_unicode(value):
        raise ValueError(f"{name} is {_short(value)}, but it should be text")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if type(value) is int and abs(value) > 10**80:
        return "a huge number"
    text = ascii(value)
    return text if len(text) <= 80 else text[:80] + "..."
