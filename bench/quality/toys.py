"""How far are CFG and REG from the guidance that they approximate? On toys whose answer is known.

Top: the noise prediction at alpha^2 = 1/2, and samples in the plane. Middle: its distance from the
exact one (root mean square where the noised data of the class lie) over the noise level. Bottom:
the distance of samples, drawn by the library, from the density that guidance is to sample.

    make toys    # writes bench/results/toys.png and bench/results/toys.json
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import golden
import torch
from golden import Tabulated
from picture import panels, write_png
from results import RESULTS, console, keep, where_and_when
from rich.table import Table
from torch import Tensor

import fastguide as fg
from fastguide.nets import GaussianMixture

PROCESS, PREDICTION = fg.EDM(0.002, 80.0), fg.Prediction("edm")
RATIOS = [0.03 * (10 / 0.03) ** (i / 24) for i in range(25)]  # sigma / alpha
WEIGHTS = (0.5, 1.0, 2.0, 4.0)  # of samples; the predictions are compared at 1
DRAWS, SAMPLES, STEPS, DIRECTIONS = 4096, 16384, 48, 32
COLOURS = {"golden": "black", "none": "tab:gray", "CFG": "tab:orange", "REG": "tab:blue"}
COLOURS["REG, chain"] = "tab:green"


@dataclass(frozen=True)
class Case:
    """Components of class 0, which is asked for, and of class 1; the reference of guidance is
    `null`: class 1, or 2 for both together.
    """

    name: str
    means: tuple[tuple[float, ...], ...]
    stds: tuple[float, ...]
    labels: tuple[int, ...]
    null: int
    axis: Tensor  # of the quadrature, in each dimension

    @property
    def net(self) -> GaussianMixture:
        """The exact network."""
        means = torch.tensor(self.means, dtype=torch.float64)
        weights = [1 / len(self.stds)] * len(self.stds)
        return GaussianMixture(means, self.stds, weights, PROCESS, PREDICTION, self.labels)

    @property
    def dimensions(self) -> int:
        """Of a sample."""
        return len(self.means[0])

    def denoiser(self, label: int) -> golden.Denoiser:
        """The exact denoiser of a class."""
        net = self.net
        return lambda x, alpha, sigma: net.denoised(
            x, alpha, sigma, torch.full((len(x),), label, dtype=torch.int64)
        )

    def target(self, w: float) -> Tabulated:
        """What guidance of weight `w` is to sample."""
        net, ref = self.net, self.null if self.null < 2 else None
        return golden.tilted(
            lambda x: golden.log_density(net, x, 0),
            lambda x: golden.log_density(net, x, ref),
            w,
            [self.axis] * self.dimensions,
        )


def line(low: float, high: float, count: int) -> Tensor:
    """Evenly spaced points."""
    return torch.linspace(low, high, count, dtype=torch.float64)


CASES = (
    Case("Gaussian", ((0.5,), (0.0,)), (0.5, 1.0), (0, 1), 1, line(-8, 8, 3201)),
    Case(
        "1-D mixture of the REG poster",
        ((0.5,), (1.5,), (-1.0,), (1.0,)),
        (0.25, 0.25, 0.5, 0.5),
        (0, 0, 1, 1),
        1,
        line(-4, 5, 3601),
    ),
    Case(
        "2-D mixture of two classes",
        ((-1.0, 0.2), (0.3, 1.0), (0.9, -0.6), (-0.3, -0.9), (1.2, 0.7), (-0.2, 0.3)),
        (0.3, 0.25, 0.35, 0.3, 0.4, 0.3),
        (0, 0, 0, 1, 1, 1),
        2,
        line(-3, 3, 601),
    ),
)


def of_ratio(ratio: float) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) `[1, 1]` with alpha^2 + sigma^2 = 1."""
    alpha = torch.full((1, 1), 1 / math.hypot(1, ratio), dtype=torch.float64)
    return alpha, ratio * alpha


def predictions(
    case: Case, target: Tabulated, w: float, x: Tensor, alpha: Tensor, sigma: Tensor
) -> dict[str, Tensor]:
    """The noise prediction `[B, D]` of each guidance."""
    pos, ref = case.denoiser(0), case.denoiser(case.null)
    clean = pos(x, alpha, sigma)
    found = {
        "golden": target.denoised(x, alpha, sigma),
        "none": clean,
        "CFG": golden.cfg(clean, ref(x, alpha, sigma), w),
    }
    found["REG"], chain = golden.reg(pos, ref, w, x, alpha, sigma)
    if case.dimensions > 1:
        found["REG, chain"] = chain
    return {name: golden.eps_of(one, x, alpha, sigma) for name, one in found.items()}


def draw(q: Tabulated, count: int, seed: int) -> Tensor:
    """Samples `[count, D]` of a tabulated density, even within a cell."""
    generator = torch.Generator().manual_seed(seed)
    flat = q.probabilities().flatten()
    cells = torch.multinomial(flat, count, replacement=True, generator=generator)
    where = torch.unravel_index(cells, q.log_values.shape)
    even = torch.rand(count, len(q.axes), generator=generator, dtype=torch.float64) - 0.5
    points = [axis[i] for axis, i in zip(q.axes, where, strict=True)]
    widths = torch.stack([axis[1] - axis[0] for axis in q.axes])
    return torch.stack(points, 1) + even * widths


def distance(one: Tensor, other: Tensor) -> float:
    """Wasserstein-1 distance of samples `[N, D]`; in the plane the mean over directions."""
    if one.shape[1] == 1:
        projections = one, other
    else:
        angles = torch.arange(DIRECTIONS, dtype=torch.float64) * math.pi / DIRECTIONS
        directions = torch.stack([angles.cos(), angles.sin()])
        projections = one @ directions, other @ directions
    a, b = (points.sort(dim=0).values for points in projections)
    return (a - b).abs().mean().item()


def sample(case: Case, guidance: fg.Guidance | None) -> Tensor:
    """Samples fp64 `[SAMPLES, D]` by the library."""
    shape = (case.dimensions,)
    model = fg.Model(case.net, PROCESS, PREDICTION, shape, case.null, class_names=("y", "other"))
    sampler = fg.Sampler(model, guidance=guidance, solver="heun", steps=STEPS)
    return sampler(torch.zeros(SAMPLES, dtype=torch.int64), range(SAMPLES)).double()


def guidances(case: Case, w: float) -> dict[str, fg.Guidance | None]:
    """As the library has them; its scales are w + 1."""
    found = {"none": None, "CFG": fg.CFG(w + 1), "REG": fg.REG(fg.CFG(w + 1))}
    if case.dimensions > 1:
        found["REG, chain"] = fg.REG(fg.CFG(w + 1), mode="chain")
    return found


def errors(case: Case) -> list[dict[str, float]]:
    """Distances of the predictions from the exact one, for each level, at weight 1."""
    target, rows = case.target(1.0), []
    generator = torch.Generator().manual_seed(0)
    clean = draw(case.target(0.0), DRAWS, 1)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    for ratio in RATIOS:
        alpha, sigma = of_ratio(ratio)
        found = predictions(case, target, 1.0, alpha * clean + sigma * noise, alpha, sigma)
        exact = found.pop("golden")
        rows.append({"ratio": ratio, **{n: golden.rms(one - exact) for n, one in found.items()}})
    return rows


def samples(case: Case) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Distances of samples from what they should be, for each weight, and those of weight 2."""
    rows, shown = [], {}
    for w in WEIGHTS:
        target = case.target(w)
        truth = draw(target, SAMPLES, 3)
        found = {name: sample(case, how) for name, how in guidances(case, w).items()}
        found["golden"] = draw(target, SAMPLES, 4)
        rows.append({"weight": w, **{n: distance(one, truth) for n, one in found.items()}})
        if w == 2.0:
            shown = found
    return rows, shown


def quoted() -> dict[str, float]:
    """The Gaussian at alpha^2 = 1/2 and weight 1: errors in eps, evenly over x in [-3, 3]."""
    case, x = CASES[0], line(-3, 3, 6001).unsqueeze(1)
    found = predictions(case, case.target(1.0), 1.0, x, *of_ratio(1.0))
    return {name: golden.rms(found[name] - found["golden"]) for name in ("CFG", "REG")}


def plot(results: list[dict[str, Any]], shown: Tensor, path: Path) -> None:
    """Three columns, a case each."""
    figure, axes = panels(3, size=(14, 11), rows=3)
    for column, (case, one) in enumerate(zip(CASES, results, strict=True)):
        top, middle, bottom = axes[column::3]
        top.set(title=case.name)
        if case.dimensions == 1:
            x = line(-3, 3, 601) if column == 0 else line(-1, 2, 601)
            found = predictions(case, case.target(1.0), 1.0, x.unsqueeze(1), *of_ratio(1.0))
            for name, eps in found.items():
                style = "--" if name == "golden" else "-"
                top.plot(x, eps, style, color=COLOURS[name], label=name, zorder=2 + (style == "--"))
            top.set(xlabel=r"$x$", ylabel=r"$\epsilon$ at $\bar\alpha = 1/2$, $w = 1$")
        else:
            density = case.target(2.0).probabilities()
            top.contourf(case.axis, case.axis, density.T, 12, cmap="Greys")
            for name in ("CFG", "REG"):
                top.plot(*shown[name][:600].T, ".", color=COLOURS[name], markersize=2, label=name)
            top.set(xlim=(-2.2, 1.8), ylim=(-1.6, 2.0), title=f"{case.name}: samples, $w = 2$")
        names = [name for name in COLOURS if name in one["errors"][0]]
        for name in names:
            look = {"color": COLOURS[name], "label": name, "marker": "o", "markersize": 3}
            middle.loglog(RATIOS, [row[name] for row in one["errors"]], **look)
            bottom.loglog(WEIGHTS, [row[name] for row in one["samples"]], **look)
        floor = [row["golden"] for row in one["samples"]]
        bottom.loglog(WEIGHTS, floor, ":", color="black", label="exact draws")
        middle.set(xlabel=r"$\sigma / \alpha$", ylabel=r"rms error of $\epsilon$, $w = 1$")
        bottom.set(xlabel="$w$", ylabel="Wasserstein-1 distance of samples", xticks=WEIGHTS)
        bottom.set_xticks([], minor=True)
        bottom.set_xticklabels([f"{w:g}" for w in WEIGHTS])
        for panel in (top, middle, bottom):
            panel.grid(alpha=0.3)
            panel.legend(frameon=False, fontsize=8)
    write_png(figure, path, dpi=90)


def main() -> None:
    """Measure, print, write the JSON and the picture."""
    results, shown = [], {}
    for case in CASES:
        rows, last = samples(case)
        shown = last or shown
        results.append({"case": case.name, "errors": errors(case), "samples": rows})
        for title, key, found in (
            ("rms error of eps, w = 1", "ratio", results[-1]["errors"][::4]),
            ("distance of samples", "weight", rows),
        ):
            table = Table(*found[0], title=f"{case.name}: {title}")
            for row in found:
                table.add_row(f"{row[key]:.3g}", *(f"{v:.3g}" for k, v in row.items() if k != key))
            console.print(table)
    content = {**where_and_when(), "quoted": quoted(), "cases": results}
    console.print(f"Gaussian, alpha^2 = 1/2, w = 1, x in [-3, 3]: {content['quoted']}")
    keep(RESULTS / "toys.json", content)
    plot(results, shown, RESULTS / "toys.png")


if __name__ == "__main__":
    main()
