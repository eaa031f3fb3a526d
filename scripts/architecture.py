"""The map of the package, from its imports: which room may import which, and whether they keep to
it. `python scripts/architecture.py` draws docs/images/architecture.svg anew and the table of rooms
in docs/architecture.md; tests/test_architecture.py holds both to the imports.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
PICTURE = ROOT / "docs/images/architecture.svg"
BEGIN, END = "<!-- rooms -->\n", "<!-- /rooms -->\n"

# A room imports from the lines below its own, and from no room of its own line. A room is a folder
# of fastguide/, or a file that lies loose there; `fastguide` is the public names. The picture has
# the rooms where they stand here.
LINES = """
                                cli
                              fastguide
                     serving
                                      adapters   training     assets
                     sample
                    sampling
                     engine                            checkpoint
       reference     guidance   solvers      nets
                                spacing              model
             staging
             ops                    process
       kernels       csrc
                              common
"""
# Rooms that only these import.
ONLY = {"kernels": {"ops"}, "csrc": {"ops", "cli"}, "reference": {"engine"}}
# Rooms that do without these, although they lie below.
WITHOUT = {"guidance": {"ops"}, "solvers": {"ops", "staging"}, "spacing": {"ops"}}
# Upwards, within a function that only some callers reach: the door makes what packs its requests.
LAZILY = {("sample", "serving")}

LEVEL = {room: level for level, line in enumerate(LINES.split("\n")) for room in line.split()}
CSRC = "The ops in C++ and CUDA C++, and their schemas: the extension `fastguide._C`."


@dataclass(frozen=True)
class Import:
    """`module` imports a module of the room `to`, perhaps only when a function is called."""

    module: str
    room: str
    to: str
    lazily: bool = False


def room_of(module: str) -> str:
    """The room of `fastguide`, `fastguide.room` or `fastguide.room.more`."""
    room = module.split(".")[1] if "." in module else module
    return {"_C": "csrc", "public": "fastguide", "__main__": "cli"}.get(room, room)


def imports_of(module: str, source: str) -> Iterator[Import]:
    """The imports of other rooms in a module's source; relative ones are banned by the linter."""
    room, tree = room_of(module), ast.parse(source)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inner = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, functions) or _is_type_checking(outer)
        for node in ast.walk(outer)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "fastguide":
            names = [_from_root(one.name) for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            if name.split(".")[0] == "fastguide" and room_of(name) != room:
                yield Import(module, room, room_of(name), id(node) in inner)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _from_root(name: str) -> str:
    """What `from fastguide import name` imports: a room, or a public name."""
    return f"fastguide.{name}" if name in LEVEL and name != "sample" else "fastguide"


def sources() -> Iterator[tuple[str, str]]:
    """(module, source) of all modules, those of kernels/ with the name they are installed by."""
    for folder, name in (
        (ROOT / "fastguide", "fastguide"),
        (ROOT / "kernels", "fastguide.kernels"),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield (
                ".".join([name, *(part for part in parts if part != "__init__")]),
                path.read_text(),
            )


def all_imports() -> list[Import]:
    """Every import of one room by another."""
    return [one for module, source in sources() for one in imports_of(module, source)]


def broken(imports: Iterable[Import]) -> list[str]:
    """What is against the rules, in words."""
    found = []
    for one in imports:
        what = f"{one.module} imports {one.to}"
        unknown = [room for room in (one.room, one.to) if room not in LEVEL]
        if unknown:
            found.append(f"{what}: give {unknown[0]} its place in LINES of scripts/architecture.py")
        elif one.lazily and (one.room, one.to) in LAZILY:
            continue
        elif LEVEL[one.to] <= LEVEL[one.room]:
            found.append(f"{what}, which does not lie below {one.room}")
        elif one.room not in ONLY.get(one.to, {one.room}):
            found.append(f"{what}, which only {', '.join(sorted(ONLY[one.to]))} may")
        elif one.to in WITHOUT.get(one.room, ()):
            found.append(f"{what}, which {one.room} does without")
    return found


def contracts() -> dict[str, str]:
    """The first sentence of each room, top line first."""
    found = {"csrc": CSRC}
    for module, source in sources():
        if module in ("fastguide", f"fastguide.{room_of(module)}"):
            text = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
            found[room_of(module)] = text.partition(". ")[0].rstrip(".") + "."
    return {room: found[room] for room in LEVEL}


def table() -> str:
    """The rooms as a table of Markdown."""
    rows = [f"| `{room}` | {text} |\n" for room, text in contracts().items()]
    return "".join(["| room | what it holds |\n", "|---|---|\n", *rows])


def arrows(imports: Iterable[Import]) -> list[tuple[str, str]]:
    """Which room imports which, less what follows from the others."""
    down = {(one.room, one.to) for one in imports if LEVEL[one.room] < LEVEL[one.to]}
    below: dict[str, set[str]] = {}  # all that each room reaches
    for room in reversed(LEVEL):
        direct = {to for start, to in down if start == room}
        below[room] = direct.union(*(below[to] for to in direct))
    return sorted(
        (room, to)
        for room, to in down
        if not any(to in below[via] for start, via in down if start == room)
    )


COLUMN, HEIGHT, BOX = 11.5, 72, (96, 32)  # of a character of LINES, of a line, of a box
BOTTOM = "common"  # which all may use: no arrows


def places() -> dict[str, tuple[float, float]]:
    """Where the middle of each room's box lies."""
    return {
        found[0]: (COLUMN * (found.start() + found.end()) / 2, HEIGHT * (level - 0.5))
        for level, line in enumerate(LINES.split("\n"))
        for found in re.finditer(r"\w+", line)
    }


def picture(imports: Iterable[Import]) -> str:
    """The rooms in their lines, and the arrows, as SVG."""
    imports, at = list(imports), places()
    wide = max(x for x, _ in at.values()) + BOX[0]
    high = max(y for _, y in at.values()) + BOX[1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}" '
        'font-family="sans-serif" font-size="14">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        '<g fill="none" stroke="#667" stroke-width="1.2" marker-end="url(#head)">',
    ]
    parts += [_curve(at[room], at[to]) for room, to in arrows(imports) if to != BOTTOM]
    lazily = {(one.room, one.to) for one in imports if (one.room, one.to) in LAZILY}
    parts += [_curve(at[room], at[to], dashed=True) for room, to in sorted(lazily)]
    parts.append("</g>")
    for room, (x, y) in at.items():
        width = wide - BOX[0] if room == BOTTOM else BOX[0]
        x = wide / 2 if room == BOTTOM else x
        parts.append(
            f'<rect x="{x - width / 2:g}" y="{y - BOX[1] / 2:g}" width="{width:g}" '
            f'height="{BOX[1]}" rx="6" fill="#eef3fb" stroke="#345"/>'
            f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle" fill="#123">{room}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _curve(start: tuple[float, float], end: tuple[float, float], dashed: bool = False) -> str:
    """An arrow from the lower edge of a box to the upper edge of another, or the other way up."""
    sign = 1 if end[1] > start[1] else -1
    (x0, y0), (x1, y1) = start, end
    if dashed:
        x0, x1 = x0 + 30, x1 + 30  # beside the arrow that goes down
    y0, y1 = y0 + sign * BOX[1] / 2, y1 - sign * BOX[1] / 2
    bend = sign * max(HEIGHT / 2, abs(y1 - y0) / 3)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="M{x0:g} {y0:g}C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1:g}"{dash}/>'
    )


def page(text: str) -> str:
    """docs/architecture.md with its table of rooms drawn anew."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return head + BEGIN + table() + END + tail


def main() -> None:
    """Write the picture and the table."""
    imports = all_imports()
    if found := broken(imports):
        sys.exit("\n".join(found))
    PICTURE.write_text(picture(imports))
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
