"""The results of the quality benchmark as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from picture import panels, write_png
from rich.console import Console
from rich.table import Table


def main_table(results: dict[str, Any]) -> Table:
    reference = results["reference"]
    samples = results["arguments"]["samples"]
    table = Table(title=f"{samples} samples a row, the same seeds and labels")
    for name in ("mode", "scale", "accuracy", "Frechet distance", "s / sample"):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for row in results["rows"]:
        table.add_row(row["mode"], f"{row['scale']:g}", *figures_of(row))
    table.add_section()
    if "dtypes" in results:
        dtypes = results["dtypes"]
        for name in ("fp32", "bf16"):
            row = dtypes[name]
            table.add_row(f"{dtypes['mode']}, {name}", f"{dtypes['scale']:g}", *figures_of(row))
        table.add_row("bf16 is faster by", "", "", "", f"{dtypes['bf16_speedup']:.2f} x")
        table.add_section()
    accuracy = results["classifier"]["test_accuracy"]
    distance = f"{reference['frechet']:.4f} +- {reference['noise']:.4f}"
    table.add_row("real test images", "", f"{accuracy:.2%}", "", "")
    table.add_row("real train images", "", "", distance, "")
    return table


def figures_of(row: dict[str, Any]) -> tuple[str, str, str]:
    distance = f"{row['frechet']:.4f} +- {row['frechet_error']:.4f}"
    return f"{row['accuracy']:.2%}", distance, f"{row['seconds_per_sample']:.4f}"


def pair_table(pairs: list[dict[str, Any]]) -> Table:
    samples = pairs[-1]["samples"]
    pairs = [pair for pair in pairs if pair["samples"] == samples]
    table = Table(title=f"Negative condition, {samples} samples each")
    for name in ("class", "negative", "mode"):
        table.add_column(name)
    for name in ("as negative: null", "given", "as class: null", "given"):
        table.add_column(name, justify="right")
    cells = {(p["class"], p["negative"], p["mode"], p["given"]): p for p in pairs}
    for (wanted, other, mode, given), row in cells.items():
        without = cells.get((wanted, other, mode, False))
        if given and without:
            shares = [at[name] for name in ("as_negative", "as_class") for at in (without, row)]
            table.add_row(wanted, other, mode, *(f"{share:.1%}" for share in shares))
    return table


def plot(results: dict[str, Any], path: Path) -> None:
    """Frechet distance and accuracy over the scale, one line a mode."""
    names = {"cfg": "CFG, two passes", "superconditioning": "superconditioning, one pass"}
    looks = {"cfg": ("#0072b2", "o"), "superconditioning": ("#d55e00", "s")}
    figure, (left, right) = panels(2, size=(10, 4))
    start = [row for row in results["rows"] if row["mode"] == "unguided"]
    for mode, name in names.items():
        rows = [row for row in results["rows"] if row["mode"] == mode]
        if not rows:
            continue
        rows = sorted(start + rows, key=lambda row: row["scale"])
        scales = [row["scale"] for row in rows]
        colour, marker = looks[mode]
        look = {"color": colour, "marker": marker, "label": name, "markersize": 5}
        errors = [row["frechet_error"] for row in rows]
        left.errorbar(scales, [row["frechet"] for row in rows], errors, capsize=2, **look)
        right.plot(scales, [100 * row["accuracy"] for row in rows], **look)
    for row in start:
        look = {"color": "black", "marker": "D", "linestyle": "none", "label": "unguided"}
        left.plot([1.0], [row["frechet"]], zorder=3, **look)
        right.plot([1.0], [100 * row["accuracy"]], zorder=3, **look)
    mean, noise = results["reference"]["frechet"], results["reference"]["noise"]
    count = len(results["reference"]["draws"])
    left.axhline(mean, color="gray", linestyle="--", label=f"train images, +- SD of {count} draws")
    left.axhspan(mean - noise, mean + noise, color="gray", alpha=0.3, linewidth=0)
    right.axhline(
        100 * results["classifier"]["test_accuracy"],
        color="gray",
        linestyle="--",
        label="real test images",
    )
    left.set(xlabel="scale", ylabel="Frechet distance to the test set", ylim=(0, None))
    right.set(xlabel="scale", ylabel="classified as requested, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    write_png(figure, path, dpi=150)


def report(results: dict[str, Any], console: Console) -> None:
    """Print all tables and the comparison of the best scales."""
    console.print(main_table(results))
    if results.get("pairs"):
        console.print(pair_table(results["pairs"]))
    best = results["best"]
    for mode, row in best.items():
        if isinstance(row, dict):
            distance = f"{row['frechet']:.4f} +- {row['frechet_error']:.4f}"
            console.print(f"best {mode}: scale {row['scale']:g}, Frechet distance {distance}")
    if "difference" in best:
        noise = f"noise {results['reference']['noise']:.4f}: SD of the train draws"
        console.print(
            f"single-pass minus two-pass: {best['difference']:+.4f} +- "
            f"{best['difference_error']:.4f} = {best['difference_in_noise']:+.2f} noise ({noise})"
        )
