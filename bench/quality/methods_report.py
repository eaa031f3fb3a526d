"""The results of a family of methods as a picture and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from families import Family
from picture import log_axis, panels, write_png
from results import console
from rich.table import Table

LABELS = {"frechet": "Frechet distance", "accuracy": "share of the right class"}


def plot(results: dict[str, Any], family: Family, path: Path) -> None:
    """Distance, with and without conditions, and accuracy: over the weight, or where the methods
    took turns over the time of a sample.
    """
    if family.front:
        plot_front(results, family, path)
        return
    wanted = [(c, "frechet") for c in family.conditions]
    wanted += [(c, "accuracy") for c in family.conditions if c or family.blind]
    figure, axes = panels(len(wanted), (4.0 * len(wanted) + 1.0, 4.0))
    for axis, (conditional, of) in zip(axes, wanted, strict=True):
        here = [row for row in results["rows"] if row["conditional"] == conditional]
        plain = next(row for row in here if row["method"] == "unguided")
        axis.axhline(plain[of], color="k", linestyle=":", label="unguided")
        for number, name in enumerate(dict.fromkeys(map(_line, family.methods))):
            rows = [row for row in here if _line(row["method"]) == name]
            at = [_time(row, plain) if family.in_turns else row["weight"] for row in rows]
            errors = [row["frechet_error"] for row in rows] if of == "frechet" else None
            if rows:
                style = {"color": f"C{number}", "marker": "o", "capsize": 2, "linewidth": 1}
                axis.errorbar(at, [row[of] for row in rows], errors, label=name, **style)
            for x, row in zip(at, rows, strict=True):
                note = row["method"].partition(", ")[2]
                axis.annotate(note, (x, row[of]), (4, 4), textcoords="offset points", fontsize=8)
        axis.set(
            xlabel="time of a sample, unguided = 1" if family.in_turns else "weight or scale",
            ylabel=LABELS[of],
            title=("with" if conditional else "without") + " conditions",
        )
        if of == "frechet":
            log_axis(axis)
    axes[0].legend()
    write_png(figure, path, 100)


def plot_front(results: dict[str, Any], family: Family, path: Path) -> None:
    """Distance over the classifier's score: what stands before a comma is a style of line, what
    stands after it a colour.
    """
    figure, (axis,) = panels(1, (7.0, 5.0))
    rows = results["rows"]
    plain = next(row for row in rows if row["method"] == "unguided")
    axis.plot(plain["score"], plain["frechet"], "k*", markersize=10, label="unguided")
    kinds = list(dict.fromkeys(_line(name) for name in family.methods))
    colours = list(dict.fromkeys(name.partition(", ")[2] for name in family.methods))
    for name in family.methods:
        line = [row for row in rows if row["method"] == name]
        kind, _, colour = name.partition(", ")
        style = {
            "color": f"C{colours.index(colour)}",
            "linestyle": ("--", "-")[kinds.index(kind)],
            "marker": ("o", "s")[kinds.index(kind)],
        }
        at = [row["score"] for row in line]
        errors = [row["frechet_error"] for row in line]
        values = [row["frechet"] for row in line]
        axis.errorbar(at, values, errors, label=name, capsize=2, linewidth=1, **style)
        for x, y, row in zip(at, values, line, strict=True):
            note = f"{row['weight']:g}"
            axis.annotate(note, (x, y), (4, 4), textcoords="offset points", fontsize=7)
    axis.set(xlabel="score of the classifier (more is better)", ylabel=LABELS["frechet"])
    log_axis(axis)
    axis.legend(fontsize=8)
    write_png(figure, path, 100)


def _line(method: str) -> str:
    return method.partition(",")[0]


def _time(row: dict[str, Any], plain: dict[str, Any]) -> float:
    ratio: float = row["seconds_per_sample"] / plain["seconds_per_sample"]
    return ratio


def show(results: dict[str, Any]) -> None:
    """All rows as a table."""
    table = Table("method", "weight", "condition", "Frechet", "right", "rows", "s / sample")
    for row in results["rows"]:
        table.add_row(
            row["method"],
            f"{row['weight']:g}",
            "class" if row["conditional"] else "none",
            f"{row['frechet']:.2f} +- {row['frechet_error']:.2f}",
            "" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
            str(row.get("net_rows", "")),
            f"{row['seconds_per_sample']:.4f}",
        )
    console.print(table)
