"""What the command line adds to the guidance text (`fastguide.parse`): "auto", and --scale and
--schedule for terms that have none of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastguide.guidance.base import Guidance
    from fastguide.model import Model

SCHEDULES = "constant[:VALUE], cosine[:POWER], interval:LOW:HIGH or linear:START:END"
HELP = (
    "auto (superconditioning or cfg, as the model can), none, or methods with amounts, layers and "
    "options, added up: 'cfg:3 + pag:1@mid'; and to a method what is done to its delta: "
    "'cfg:4 | apg:radius=2.5 | rescale:0.7'. Networks by folder: autoguidance:2,weak=FOLDER"
)


def parse_guidance(
    text: str, model: Model, scale: float | None = None, schedule: str | None = None
) -> Guidance | None:
    """The guidance that `text` says; for "auto" the cheapest that the model has.

    Args:
        scale, schedule: of every term where `text` has none; the scale is 3 by default.

    Raises:
        ValueError: it cannot be read, or nothing in it takes the scale or the schedule.
    """
    from fastguide.assets import loader
    from fastguide.guidance.text import parse
    from fastguide.guidance.words import read_schedule

    given: dict[str, Any] = {"scale": 3.0 if scale is None else scale}
    if schedule is not None:
        given["schedule"] = read_schedule(schedule)
    if text.strip().lower() == "auto":
        auto = "superconditioning" if model.heads > 1 else "cfg"
        text = "none" if model.heads == 1 and model.null is None else auto
    parameter = model.parameter
    load = loader("cpu" if parameter is None else parameter.device)
    found = parse(text, load, given)
    for name in (
        name for name, value in (("scale", scale), ("schedule", schedule)) if value is not None
    ):
        others = {key: value for key, value in given.items() if key != name}
        if found is None or str(found) == _without(text, load, others):
            raise ValueError(f"{name} is given, but {text!r} has nothing that it would be of")
    return found


def _without(text: str, load: Any, given: dict[str, Any]) -> str:
    from fastguide.guidance.text import parse

    try:
        return str(parse(text, load, given))
    except ValueError:  # so it is needed
        return ""
