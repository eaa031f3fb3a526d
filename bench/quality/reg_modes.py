"""How far the modes of REG are from each other: on a mixture with exact scores, and on the bundled
model.

For each mode at each noise level, over some samples: how far its rectified delta is from that of
the published mode ("vjp"), relative to it. Plain CFG, whose factor is 1, is there to compare.

    make reg-modes    # bench/results/reg_modes.json
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from results import RESULTS, console, keep, start, where_and_when
from rich.table import Table
from torch import Tensor

import fastguide as fg
from fastguide.engine.evaluate import Evaluate
from fastguide.engine.passes import Conditions, make_passes
from fastguide.engine.plan import make_plan
from fastguide.engine.predict import Predict
from fastguide.nets import GaussianMixture
from fastguide.reference.step import delta_of

MODES: dict[str, fg.Guidance] = {
    "CFG": fg.CFG(2.0),
    "vjp": fg.REG(fg.CFG(2.0)),
    "difference": fg.REG(fg.CFG(2.0), "difference"),
    "chain": fg.REG(fg.CFG(2.0), "chain"),
}


def rectified(model: fg.Model, guidance: fg.Guidance, level: fg.Level, x: Tensor) -> Tensor:
    """What the guidance adds to the positive prediction at weight 1, `[B, *shape]`."""
    levels = fg.Levels(model.process, (level, fg.Level(0.0, 1.0, 0.0)))
    plan = make_plan(model.prediction, levels, fg.ddim, guidance)
    pattern = plan.rows[1].pattern
    assert pattern is not None
    passes = {pattern: make_passes(pattern, {None: model.net})}
    labels = torch.arange(len(x)) % int(model.null)
    fixed: dict[Any, Any] = {"cond": labels, "negative": torch.full_like(labels, model.null)}
    if model.negative:
        fixed = {k: (v, torch.full_like(labels, model.null)) for k, v in fixed.items()}
    known = (Conditions({None: fixed}), torch.arange(len(x)), torch.float32, model.outputs)
    evaluate = Evaluate(Predict(plan, passes, *known))
    copies = passes[pattern].inputs
    inputs = (model.prediction.input_scale(level) * x).repeat(copies, *[1] * (x.ndim - 1))
    found = evaluate(plan.at(1), pattern, inputs, x)
    positive, other = found.branches
    delta = delta_of(positive.float(), other, bool(found.deltas >> 1 & 1))
    return delta if found.factor is None else found.factor * delta


def mixture() -> fg.Model:
    """Two classes of two components each in 16 dimensions."""
    generator = torch.Generator().manual_seed(1)
    means = 0.3 * torch.randn(4, 1, 4, 4, generator=generator, dtype=torch.float64)
    net = GaussianMixture(
        means, [0.4, 0.5, 0.6, 0.3], [0.2, 0.3, 0.3, 0.2], fg.Flow(), fg.Prediction("flow"),
        [0, 0, 1, 1],
    )  # fmt: skip
    return fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 4, 4), null=2)


def measure(model: fg.Model, samples: int, times: list[float]) -> list[dict[str, Any]]:
    """One row per time: how far each mode is from "vjp", relative to it."""
    rows = []
    labels = torch.arange(samples) % int(model.null)
    for t in times:
        # x on the way of the model's own samples
        seen: list[Tensor] = []
        levels = fg.make_levels(model.process, 20)
        at = min(range(20), key=lambda i: abs(levels.points[i].t - t))

        def look(progress: fg.Progress, at: int = at, seen: list[Tensor] = seen) -> None:
            if progress.evaluation == at:
                seen.append(progress.x.clone())

        fg.sample(model, labels, steps=20, seeds=range(samples), callback=look)
        level, x = levels.points[at], seen[0]
        deltas = {name: rectified(model, g, level, x) for name, g in MODES.items()}
        published = deltas["vjp"].flatten(1)
        apart = {
            name: float((delta.flatten(1) - published).norm() / published.norm())
            for name, delta in deltas.items()
        }
        rows.append({"t": level.t, "apart": apart})
    return rows


def main(
    samples: Annotated[int, typer.Option(help="of a row")] = 50,
    model: Annotated[str, typer.Option(help="name of a bundled model, or a folder")] = "fashion",
) -> None:
    """Measure and write."""
    times = [0.9, 0.7, 0.5, 0.3, 0.1]
    results = {
        **where_and_when(),
        "samples": samples,
        "mixture": measure(mixture(), samples, times),
        model: measure(fg.load(model), samples, times),
    }
    keep(RESULTS / "reg_modes.json", results)
    for kind in ("mixture", model):
        table = Table("t", *MODES, title=kind)
        for row in results[kind]:
            table.add_row(f"{row['t']:g}", *(f"{row['apart'][name]:.4f}" for name in MODES))
        console.print(table)


if __name__ == "__main__":
    start(main)
