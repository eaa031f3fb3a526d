"""What does each guidance method do for a small model? Judged by a classifier.

For every method of a family and every weight, with the classes as conditions and without any: the
Frechet distance of the classifier's features to the whole test set, the share of samples of the
requested class, the rows that the network computes, and the seconds a sample. Results are written
after every point; a run that was stopped goes on.

    make methods        # all families: bench/results/<family>.json and .png
    make methods-icg    # one
"""

from __future__ import annotations

from typing import Annotated, Any

import study
import typer
from families import FAMILIES, Family, Method
from methods_report import plot, show
from results import RESULTS, console, keep, kept_or_anew, start
from study import CACHE, DATA, CacheOption, DataOption, DtypeOption, Judge

import fastguide as fg

STEPS = 25
TURN = 50  # samples of a batch where methods take turns
Point = tuple[str, float, bool]  # method, weight, with conditions


def points(family: Family) -> dict[Point, Method | None]:
    """All points of a family."""
    found: dict[Point, Method | None] = {("unguided", 0.0, c): None for c in family.conditions}
    for name, method in family.methods.items():
        found |= {(name, w, c): method for w in method.weights for c in method.conditions}
    return found


def guidance_of(
    method: Method | None, weight: float, others: dict[str, study.Other]
) -> fg.Guidance | None:
    """What a method is at a weight."""
    if method is None:
        return None
    return method.make(*[others[name] for name in method.others], weight)


def measure(
    model: fg.Model,
    judge: Judge,
    guidances: dict[Point, fg.Guidance | None],
    samples: int,
    batch: int,
    blind: bool = False,
) -> list[dict[str, Any]]:
    """The rows of points that are all with, or all without, conditions; they take turns."""
    conditional = all(point[2] for point in guidances)
    if blind and not conditional:
        model = study.blinded(model)
    samplers = [fg.Sampler(model, guidance, steps=STEPS) for guidance in guidances.values()]
    names = ", ".join(name for name, _, _ in guidances)
    labels = judge.labels(samples) if conditional or blind else None
    drawn = study.draw(samplers, samples, labels, names, batch=batch)
    rows = []
    for (name, weight, _), sampler, (pixels, seconds) in zip(
        guidances, samplers, drawn, strict=True
    ):
        figures = judge.figures(pixels)
        rows.append(
            {
                "method": name,
                "weight": weight,
                "conditional": conditional,
                "frechet": figures["frechet"],
                "frechet_error": figures["frechet_error"],
                "accuracy": None if labels is None else figures["accuracy"],
                "score": figures["score"],
                "net_rows": sampler.plan.net_rows,
                "seconds_per_sample": seconds,
            }
        )
        console.print(rows[-1])
    return rows


def main(
    family: Annotated[str, typer.Argument(help=f"one of {', '.join(FAMILIES)}")],
    samples: Annotated[int | None, typer.Option(help="of a point, instead of its own")] = None,
    dtype: DtypeOption = "bf16",
    data: DataOption = DATA,
    cache: CacheOption = CACHE,
) -> None:
    """Measure, write and plot one family."""
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}, but it should be one of {', '.join(FAMILIES)}")
    chosen = FAMILIES[family]
    samples = samples or chosen.samples
    model = study.load_model(chosen.model, dtype)
    others = {
        name: study.load_other(name, dtype)
        for method in chosen.methods.values()
        for name in method.others
    }
    judge = study.make_judge(data, cache, model)
    path = RESULTS / f"{family}.json"
    found = kept_or_anew(
        path,
        study.run_of(
            {"samples": samples, "steps": STEPS, "dtype": dtype}, chosen.model, model, judge, others
        ),
        study.in_common,
    )
    rows: list[dict[str, Any]] = found.setdefault("rows", [])
    done = {(row["method"], row["weight"], row["conditional"]) for row in rows}
    wanted = points(chosen)
    missing = [point for point in wanted if point not in done]
    if chosen.in_turns:
        groups = [[p for p in wanted if p[2] == c] for c in chosen.conditions]
        groups = [group for group in groups if any(point in missing for point in group)]
        again = {point for group in groups for point in group}
        rows[:] = [r for r in rows if (r["method"], r["weight"], r["conditional"]) not in again]
    else:
        groups = [[point] for point in missing]
    for group in groups:
        guidances = {p: guidance_of(wanted[p], p[1], others) for p in group}
        batch = TURN if chosen.in_turns else study.BATCH
        rows += measure(model, judge, guidances, samples, batch, chosen.blind)
        keep(path, found)
    plot(found, chosen, path.with_suffix(".png"))
    show(found)


if __name__ == "__main__":
    start(main)
