"""Guidance as text: `cfg:3 + pag:1,layers=mid`, `cfg:4 | reg | rescale:0.7`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastguide.guidance.base import Guidance
    from fastguide.guidance.schedule import Schedule
    from fastguide.model import Model

SCHEDULES = "constant, linear:START,END, cosine[:POWER] or interval:LOW,HIGH"
HELP = (
    "auto (one pass where the model can), none, or methods with a weight and options, added up: "
    "'cfg:3 + pag:1,layers=2/5'; of superconditioning, cfg, pag, seg, sag, slg, stg, tpg, nag, "
    "icg, tsg, fdg:2,high=4, autoguidance:2,weak=FOLDER, sims:1,auxiliary=FOLDER; and to a method "
    "what is done to its delta: 'cfg:4 | apg:radius=2.5', of reg, apg, cfgzerostar, tcfg, mambo, "
    "adaptive, cfgnorm, rescale:0.7"
)
_NETWORKS = {"autoguidance": "weak", "sims": "auxiliary"}  # the options that are another model
_INTEGERS = ("kernel_size", "every", "levels", "zero_steps", "checkpoint", "axes", "grows")
_AMOUNTS = {"weight", "scale", "low", "schedule", "guidance", "within"}


def parse_schedule(text: str) -> Schedule:
    """A schedule of the guidance from its name and numbers."""
    import fastguide as fg

    known = {
        "constant": fg.constant,
        "linear": fg.linear,
        "cosine": fg.cosine,
        "interval": fg.interval,
    }
    name, _, tail = text.partition(":")
    try:
        numbers = [float(part) for part in tail.split(",")] if tail else []
        return known[name](*numbers)
    except (KeyError, TypeError) as error:
        raise ValueError(f"schedule is {text!r}, but it should be {SCHEDULES}") from error


def parse_guidance(text: str, scale: float, schedule: Schedule, model: Model) -> Guidance | None:
    """The guidance that `text` says, or for "auto" the cheapest that the model has.

    Args:
        scale: of CFG and superconditioning where `text` has no number for them.
        schedule: of every term.
    """
    import fastguide as fg

    methods: dict[str, Any] = {"cfg": fg.CFG, "superconditioning": fg.Superconditioning}
    methods |= {
        one.__name__.lower(): one
        for one in (
            *(fg.PAG, fg.SEG, fg.SAG, fg.SLG, fg.STG, fg.TPG, fg.NAG),
            *(fg.ICG, fg.TSG, fg.AutoGuidance, fg.SIMS, fg.FDG),
        )
    }
    if text == "auto":
        text = (
            "superconditioning" if model.heads > 1 else "cfg" if model.null is not None else "none"
        )
    if text == "none":
        return None
    total: Guidance | None = None
    for whole in text.split("+"):
        part, *modifiers = whole.split("|")
        name, _, tail = part.strip().partition(":")
        if name not in methods:
            raise ValueError(
                f"guidance has {name!r}, but it should be auto, none, or of {', '.join(methods)}"
            )
        amount, options = _options(part.strip(), tail, methods[name])
        if amount is None:
            if name not in ("cfg", "superconditioning"):
                raise ValueError(f"guidance has {part.strip()!r}, but it needs a weight: {name}:1")
            amount = scale
        if name in _NETWORKS:
            if _NETWORKS[name] not in options:
                raise ValueError(
                    f"guidance has {part.strip()!r}, but it needs another model: "
                    f"{_NETWORKS[name]}=FOLDER"
                )
            parameter = model.parameter
            device = "cpu" if parameter is None else parameter.device
            other = fg.load(options.pop(_NETWORKS[name]), device)
            one = methods[name](other, amount, schedule=schedule, **options)
        else:
            one = methods[name](amount, schedule=schedule, **options)
        for modifier in modifiers:
            one = _modified(one, modifier.strip())
        total = one if total is None else total + one
    return total


def _modified(guidance: Guidance, part: str) -> Guidance:
    """`guidance` with the modifier that `part` says, such as "apg:radius=2.5"."""
    import fastguide as fg

    classes: tuple[Any, ...] = (fg.REG, fg.APG, fg.CFGZeroStar, fg.TCFG, fg.MAMBO, fg.Adaptive)
    modifiers = {one.__name__.lower(): one for one in (*classes, fg.CFGNorm)}
    name, _, tail = part.partition(":")
    if name == "rescale":
        return guidance.rescale(_number(part, tail)) if tail else guidance.rescale()
    if name not in modifiers:
        raise ValueError(
            f"guidance has '| {part}', but after a method comes one of rescale, "
            f"{', '.join(modifiers)}"
        )
    amount, options = _options(part, tail, modifiers[name])
    if amount is not None:
        raise ValueError(f"guidance has '| {part}', but {name} takes options, as in name=value")
    return modifiers[name](guidance, **options)


def _options(part: str, tail: str, method: Any) -> tuple[float | None, dict[str, Any]]:
    """The amount, and the options by name."""
    fields = {field.name for field in dataclasses.fields(method) if field.init} - _AMOUNTS
    amount: float | None = None
    options: dict[str, Any] = {}
    for number, entry in enumerate(tail.split(",") if tail else []):
        key, equals, value = (piece.strip() for piece in entry.partition("="))
        if not equals and number == 0:
            amount = _number(part, key)
        elif not equals or key not in fields:
            raise ValueError(
                f"guidance has {part!r}, but after the weight come options of "
                f"{', '.join(sorted(fields)) or 'which it has none'}, as in name=value"
            )
        elif key == "layers":
            names = [int(one) if one.isdigit() else one for one in value.split("/")]
            options[key] = names if len(names) > 1 else names[0]
        elif key in ("mask", "of", "mode", "space", *_NETWORKS.values()):
            options[key] = value
        else:
            found = _number(part, value)
            options[key] = int(found) if key in _INTEGERS else found
    return amount, options


def _number(part: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"guidance has {part!r}, but {text!r} is not a number") from None
