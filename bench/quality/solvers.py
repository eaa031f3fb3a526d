"""How exact is each solver for its evaluations? All of them on a mixture whose scores are known.

Deterministic solvers: the distance of each sample from where the exact probability flow takes its
noise (root mean square). Those with noise: the distance of all samples together from the mixture
(sliced Wasserstein-1), whose floor is what as many exact draws have.

    make solvers    # writes docs/images/solvers.png and bench/results/solvers.json
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from picture import panels, write_png
from results import IMAGES, RESULTS, console, keep, where_and_when
from rich.table import Table
from torch import Tensor

import fastguide as fg
from fastguide.nets import GaussianMixture
from fastguide.solvers import SOLVERS, Solver

COUNTS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # evaluations
SAMPLES, DIRECTIONS = 4096, 32
PROCESS, PREDICTION = fg.EDM(0.002, 80.0), fg.Prediction("edm")
MEANS = torch.tensor([[1.2, 0.2], [-0.9, 0.9], [-0.3, -1.1], [0.4, -0.4]], dtype=torch.float64)
STDS, WEIGHTS = [0.3, 0.2, 0.25, 0.1], [0.3, 0.3, 0.25, 0.15]
STOCHASTIC = {
    **{n: SOLVERS[n] for n in ("ddpm", "euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")},
    **{n: SOLVERS[n] for n in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "er_sde", "sa_solver")},
    "ddpm large": SOLVERS["ddpm"](variance="large"),
    "heun, churn 20": SOLVERS["heun"](churn=20.0),
    **{n: SOLVERS[n] for n in ("res_multistep_ancestral", "predictor_corrector")},
}
DETERMINISTIC = {
    **{
        n: SOLVERS[n] for n in ("ddim", "heun", "plms", "pndm", "s_pndm", "ipndm", "ipndm_v", "lms")
    },
    **{n: SOLVERS[n] for n in ("deis", "dpm_2", "dpm_2m", "dpm_3m", "dpm_single", "dpm_fast")},
    **{n: SOLVERS[n] for n in ("dpmpp_2m", "dpmpp_3m", "dpmpp_single", "gradient_estimation")},
    "deis, tAB": SOLVERS["deis"](over="t"),
    "dpmpp_single, order 3": SOLVERS["dpmpp_single"](order=3),
    "rho_rk, order 4": SOLVERS["rho_rk"](method="rk4"),
    "sa_solver, no noise": SOLVERS["sa_solver"](tau=0.0, predictor_order=3, corrector_order=4),
    "unipc": SOLVERS["unipc"],
    "unipc, order 3": SOLVERS["unipc"](order=3),
}
SEVERAL = {
    *("heun", "dpm_2", "dpm_single", "dpm_fast", "dpmpp_single", "dpmpp_single, order 3"),
    "rho_rk, order 4",
}
BESIDE = ("ddim", "dpmpp_2m", "unipc")  # deterministic ones, to compare noise with


def sample(solver: Solver, steps: int) -> tuple[Tensor, int]:
    """Samples fp32 `[SAMPLES, 2]` and the evaluations that they took."""
    net = GaussianMixture(MEANS, STDS, WEIGHTS, PROCESS, PREDICTION)
    model = fg.Model(net, PROCESS, PREDICTION, (2,))
    sampler = fg.Sampler(model, solver=solver, steps=steps)
    return sampler(None, range(SAMPLES)), sampler.plan.evaluations


def draws(seed: int) -> Tensor:
    """As many draws from the mixture itself."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    which = torch.multinomial(weights, SAMPLES, replacement=True, generator=generator)
    noise = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    return MEANS[which] + torch.tensor(STDS, dtype=torch.float64)[which].unsqueeze(1) * noise


def sliced_distance(one: Tensor, other: Tensor) -> float:
    """Mean Wasserstein-1 distance of the projections on evenly spread directions."""
    angles = torch.arange(DIRECTIONS, dtype=torch.float64) * math.pi / DIRECTIONS
    directions = torch.stack([angles.cos(), angles.sin()])
    a, b = ((points.double() @ directions).sort(dim=0).values for points in (one, other))
    return (a - b).abs().mean().item()


def steps_for(solver: Solver, evaluations: int) -> int | None:
    """The steps with which `solver` takes at most `evaluations`, if it takes nearly as many; two
    or more.
    """
    for steps in range(evaluations, 1, -1):
        levels = fg.make_levels(PROCESS, steps)
        taken = sum(update.at is not None for update in solver.run(levels))
        if taken <= evaluations:
            return steps if taken >= evaluations - 3 else None
    return None


def measure() -> list[dict[str, Any]]:
    """One record per solver and number of evaluations."""
    truth, _ = sample(SOLVERS["unipc"](order=3), 600)
    against, rows = draws(1), []
    for names, exact in ((DETERMINISTIC, True), (STOCHASTIC, False)):
        for name, solver in names.items():
            for count in COUNTS:
                steps = steps_for(solver, count)
                if steps is None:
                    continue
                samples, evaluations = sample(solver, steps)
                row = {"solver": name, "steps": steps, "evaluations": evaluations}
                row["sliced"] = sliced_distance(samples, against)
                if exact:
                    row["error"] = (samples - truth).square().mean().sqrt().item()
                rows.append(row)
    return rows


def _nearly(rows: list[dict[str, Any]], count: int) -> dict[str, Any]:
    """The row of at most `count` evaluations, and at most three less."""
    return next((row for row in rows if 0 <= count - row["evaluations"] <= 3), {})


def plot(rows: list[dict[str, Any]], floor: float, path: Path) -> None:
    """Errors of deterministic solvers, of one and of several evaluations a step, and the distances
    of stochastic ones.
    """
    figure, axes = panels(3, size=(19, 7.5))
    groups = (
        [name for name in DETERMINISTIC if name not in SEVERAL],
        [name for name in DETERMINISTIC if name in SEVERAL],
        [*STOCHASTIC, *BESIDE],
    )
    colours = matplotlib.colormaps["tab20"].colors
    for panel, names, what in zip(axes, groups, ("error", "error", "sliced"), strict=True):
        for i, name in enumerate(names):
            mine = [row for row in rows if row["solver"] == name]
            panel.loglog(
                [row["evaluations"] for row in mine],
                [row[what] for row in mine],
                color=colours[i % len(colours)],
                marker="os^vDP*X"[i % 8],
                markersize=4,
                linewidth=1.2,
                linestyle="-" if name in DETERMINISTIC else "--",
                label=name,
            )
        panel.set(xlabel="evaluations", xticks=COUNTS)
        panel.set_xticks([], minor=True)
        panel.set_xticklabels([str(count) for count in COUNTS])
        panel.grid(alpha=0.3)
    axes[2].axhline(floor, color="gray", linestyle=":", label="exact draws")
    axes[0].set(ylabel="error to the exact probability flow (rms)")
    axes[0].set(title="one evaluation a step")
    axes[1].set(title="several evaluations a step")
    axes[2].set(ylabel="sliced Wasserstein-1 distance to the mixture", title="with noise")
    top = max(axis.get_ylim()[1] for axis in axes[:2])
    for panel in axes:
        panel.legend(frameon=False, fontsize=8)
    for panel in axes[:2]:
        panel.set_ylim(5e-5, top)
    write_png(figure, path, dpi=110)


def main() -> None:
    """Measure, print, write the JSON and the picture."""
    rows = measure()
    floor = sliced_distance(draws(2), draws(1))
    shown = [8, 16, 32, 64]
    table = Table("solver", *(f"{count}" for count in shown), title="error at N evaluations")
    for name in dict.fromkeys(row["solver"] for row in rows):
        mine = [row for row in rows if row["solver"] == name]
        cells = [_nearly(mine, count) for count in shown]
        table.add_row(name, *(f"{c.get('error', c.get('sliced', math.nan)):.1e}" for c in cells))
    console.print(table)
    content = {**where_and_when(), "samples": SAMPLES, "sliced_floor": floor, "rows": rows}
    keep(RESULTS / "solvers.json", content)
    plot(rows, floor, IMAGES / "solvers.png")


if __name__ == "__main__":
    main()
