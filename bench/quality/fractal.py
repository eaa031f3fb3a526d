"""What CFG and autoguidance do to samples of one class: the 2-D toy of the autoguidance paper
(Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", section 3).

Two classes are trees of Gaussians that grow apart. Top row: exact networks, whose weak version
knows the data through a blur. Bottom row: trained ones, small enough to err; the weak network is
half as wide and trained an eighth as long, and that of CFG knows both classes.

    make toys    # writes bench/results/fractal.png and bench/results/fractal.json
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import golden
import torch
from matplotlib.colors import PowerNorm
from picture import panels, write_png
from results import RESULTS, console, keep, where_and_when
from rich.table import Table
from torch import Tensor, nn

import fastguide as fg
from fastguide.nets import GaussianMixture
from fastguide.nets.diffuse import alpha_sigma, net_input, prediction_of

PROCESS, PREDICTION = fg.EDM(0.002, 5.0), fg.Prediction("edm")
SEED, DEPTH, ON_A_BRANCH = 2, 7, 8  # branches split DEPTH - 1 times
ANGLES = (math.pi / 4, 5 * math.pi / 4)
BLUR = 0.1  # std, of the exact weak network
CFG_SCALE, AUTO_SCALE, STEPS, SAMPLES = 4.0, 3.0, 32, 2048
OUTLIER = 0.001  # a sample is one where the density is below this quantile of the data's own
MEAN_LOG_SIGMA, STD_LOG_SIGMA = -2.3, 1.5  # of the noise in training


@dataclass(frozen=True)
class Tree:
    """Components of both classes: means `[K, 2]`, their stds, weights, class and branch."""

    means: Tensor
    stds: Tensor
    weights: Tensor
    labels: Tensor
    branches: Tensor

    def net(self, blur: float = 0.0) -> GaussianMixture:
        """The exact network of the data, blurred by a Gaussian."""
        stds = (self.stds.square() + blur**2).sqrt().tolist()
        weights, labels = self.weights.tolist(), self.labels.tolist()
        return GaussianMixture(self.means, stds, weights, PROCESS, PREDICTION, labels)

    def draw(self, count: int, label: int | None, generator: torch.Generator) -> Tensor:
        """Samples fp64 `[count, 2]` of a class, or of both."""
        weights = self.weights * (1.0 if label is None else self.labels == label)
        which = torch.multinomial(weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        return self.means[which] + self.stds[which].unsqueeze(1) * noise


def grow() -> Tree:
    """A branch is a row of components whose stds are half their distance; at its end it splits into
    two shorter ones, which turn away from each other. All branches of a generation weigh the same,
    and so do all generations.
    """
    generator = torch.Generator().manual_seed(SEED)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    rows: list[tuple[float, float, float, float, int, int]] = []
    for label, angle in enumerate(ANGLES):
        tips = [(0.0, 0.0, angle, 0.55)]
        for _ in range(DEPTH):
            grown, weight = [], 1 / (len(tips) * ON_A_BRANCH)
            for x, y, turn, length in tips:
                branch = rows[-1][5] + 1 if rows else 0
                for place in range(ON_A_BRANCH):
                    along = length * (place + 0.5) / ON_A_BRANCH
                    point = x + along * math.cos(turn), y + along * math.sin(turn)
                    rows.append((*point, 0.5 * length / ON_A_BRANCH, weight, label, branch))
                x, y = x + length * math.cos(turn), y + length * math.sin(turn)
                for side in (-1, 1):
                    away = turn + side * draw(0.25, 0.75)
                    grown.append((x, y, away, length * draw(0.65, 0.85)))
            tips = grown
    x, y, stds, weights, labels, branches = zip(*rows, strict=True)
    return Tree(
        torch.tensor([x, y], dtype=torch.float64).T.contiguous(),
        torch.tensor(stds, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64) / (2 * DEPTH),
        torch.tensor(labels),
        torch.tensor(branches),
    )


class MLP(nn.Module):
    """F of EDM for points of the plane: `net(x, t, cond)`, `[B, 2]` to `[B, 2]`, no condition."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        widths = [4, hidden, hidden, hidden, hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, 2))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        time = t.unsqueeze(1).to(x.dtype)
        return self.layers(torch.cat([x, time, torch.ones_like(time)], 1))


def teach(tree: Tree, label: int | None, hidden: int, steps: int) -> MLP:
    """An MLP trained on a class, or on both, and averaged."""
    torch.manual_seed(SEED)
    net, generator = MLP(hidden), torch.Generator().manual_seed(SEED)
    average = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 / math.sqrt(max(step / 512, 1))
        clean = tree.draw(4096, label, generator).float()
        log_sigma = torch.randn(4096, 1, generator=generator) * STD_LOG_SIGMA + MEAN_LOG_SIGMA
        t = log_sigma.exp()
        alpha, sigma = (value.float() for value in alpha_sigma(PROCESS, t))
        x = clean + sigma * torch.randn(clean.shape, generator=generator)
        target = prediction_of(PREDICTION, clean, x, alpha, sigma)
        scaled, time = net_input(PREDICTION, x, t, alpha, sigma)
        loss = (net(scaled, time) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        share = 1 - min(1 - 1 / (step + 1), 0.99)
        torch._foreach_lerp_(
            list(average.parameters()), [p.detach() for p in net.parameters()], share
        )
    return average


def model(net: Any, null: int | None = None) -> fg.Model:
    """Of points of the plane."""
    return fg.Model(net, PROCESS, PREDICTION, (2,), null, class_names=("A", "B") if null else ())


def sample(one: fg.Model, guidance: fg.Guidance | None) -> Tensor:
    """Samples fp64 of class A."""
    sampler = fg.Sampler(one, guidance=guidance, solver="heun", steps=STEPS)
    parts = []
    for seeds in torch.arange(SAMPLES).split(1024):
        cond = None if one.null is None else torch.zeros(len(seeds), dtype=torch.int64)
        parts.append(sampler(cond, seeds))
    return torch.cat(parts).double()


def judge(tree: Tree, x: Tensor, floor: float) -> dict[str, float]:
    """Mean log density of `x` under class A, the share of outliers, and how much of the data's mass
    is on other branches than the samples' (total variation).
    """
    log_density = golden.log_density(tree.net(), x, 0)
    own = tree.labels == 0
    nearest = (x.unsqueeze(1) - tree.means[own]).square().sum(2) / tree.stds[own].square()
    size = tree.weights[own].log() - 2 * tree.stds[own].log()
    which = tree.branches[own][(size - 0.5 * nearest).argmax(1)]
    count = int(tree.branches[own].max()) + 1
    found = torch.bincount(which, minlength=count).double() / len(x)
    wanted = torch.zeros(count, dtype=torch.float64)
    wanted.index_add_(0, tree.branches[own], tree.weights[own] / tree.weights[own].sum())
    return {
        "log_density": log_density.clamp_min(-100).mean().item(),
        "outliers": (log_density < floor).double().mean().item(),
        "misplaced": 0.5 * (found - wanted).abs().sum().item(),
    }


def draw_all(tree: Tree) -> dict[str, Tensor]:
    """Samples of everything that is shown, by name."""
    generator = torch.Generator().manual_seed(SEED + 1)
    exact, blurred = model(tree.net(), 2), model(tree.net(BLUR), 2)
    strong, weak, both = (
        model(teach(tree, label, hidden, steps))
        for label, hidden, steps in ((0, 64, 4096), (0, 32, 512), (None, 32, 512))
    )
    return {
        "data": tree.draw(SAMPLES, 0, generator),
        "exact": sample(exact, None),
        "exact, CFG": sample(exact, fg.CFG(CFG_SCALE)),
        "exact, autoguidance": sample(exact, fg.AutoGuidance(blurred, AUTO_SCALE)),
        "trained, weak": sample(weak, None),
        "trained": sample(strong, None),
        "trained, CFG": sample(strong, fg.AutoGuidance(both, CFG_SCALE)),
        "trained, autoguidance": sample(strong, fg.AutoGuidance(weak, AUTO_SCALE)),
    }


def plot(tree: Tree, drawn: dict[str, Tensor], rows: dict[str, dict[str, float]]) -> None:
    """Samples over the density of class A; class B in outline."""
    axis = torch.linspace(-0.6, 2.0, 261, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    of_a, of_b = (
        torch.cat([golden.log_density(tree.net(), part, k) for part in points.split(20)]).exp()
        for k in (0, 1)
    )
    figure, axes = panels(4, size=(16, 8.4), rows=2)
    for panel, (name, x) in zip(axes, drawn.items(), strict=True):
        panel.pcolormesh(axis, axis, of_a, cmap="Oranges", norm=PowerNorm(0.4), rasterized=True)
        panel.contour(axis, axis, of_b, levels=[0.1], colors="tab:gray", linewidths=0.5)
        panel.plot(*x[:1500].T, ".", color="black", markersize=1.2)
        found = rows[name]
        numbers = f"outliers {found['outliers']:.1%}, misplaced {found['misplaced']:.1%}"
        panel.set(xlim=(-0.6, 2.0), ylim=(-0.6, 2.0), xticks=[], yticks=[], aspect="equal")
        panel.set_title(f"{name}\n{numbers}", fontsize=10)
    write_png(figure, RESULTS / "fractal.png", dpi=80)


def main() -> None:
    """Draw, judge, print, write the JSON and the picture."""
    tree = grow()
    generator = torch.Generator().manual_seed(SEED)
    own = golden.log_density(tree.net(), tree.draw(20_000, 0, generator), 0)
    floor = torch.quantile(own, OUTLIER).item()
    drawn = draw_all(tree)
    rows = {name: judge(tree, x, floor) for name, x in drawn.items()}
    table = Table("samples", "mean log density", "outliers", "misplaced")
    for name, row in rows.items():
        table.add_row(
            name, f"{row['log_density']:.2f}", f"{row['outliers']:.2%}", f"{row['misplaced']:.1%}"
        )
    console.print(table)
    content = {
        **where_and_when(),
        "samples": SAMPLES,
        "scales": {"CFG": CFG_SCALE, "autoguidance": AUTO_SCALE},
        "rows": rows,
    }
    keep(RESULTS / "fractal.json", content)
    plot(tree, drawn, rows)


if __name__ == "__main__":
    main()
