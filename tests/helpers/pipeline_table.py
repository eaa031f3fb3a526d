"""The table of docs/diffusers.md: what becomes of each action on each family's pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/diffusers.md"
BEGIN, END = "<!-- actions -->\n", "<!-- /actions -->\n"
HEADS = {"sd": "SD", "sdxl": "SDXL", "sd3": "SD3", "flux": "Flux", "pixart": "PixArt"}


def cell(outcome: str) -> str:
    """What the table says of an outcome of `pipeline_actions.outcome`."""
    return {"same": "yes", "absent": "", "fails": ""}.get(outcome, "error")


def read() -> dict[tuple[str, str], str]:
    """The cells of the page's table, by action and family."""
    body = PAGE.read_text().split(BEGIN)[1].split(END)[0].splitlines()[2:]
    found = {}
    for line in body:
        action, *cells = (one.strip() for one in line.strip("|").split("|"))
        found |= {(action, name): one for name, one in zip(HEADS, cells, strict=True)}
    return found


def write(actions: list[str], cells: Mapping[tuple[str, str], str]) -> None:
    """The table of these actions into the page."""
    lines = ["| what is done | " + " | ".join(HEADS.values()) + " |", "|---" * 6 + "|"]
    for action in actions:
        lines.append(f"| {action} | " + " | ".join(cells[action, name] for name in HEADS) + " |")
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)
