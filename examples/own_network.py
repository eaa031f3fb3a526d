"""A network of your own: trained on a spiral in the plane, then sampled with guidance.

    python examples/own_network.py --out own_network.png

Anything that is called as `net(x, t, cond)` samples. Here `x` is `[rows, 2]`, the process is
rectified flow, and `cond` one of three classes or the null class, 3.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import fastguide as fg

CLASSES = 3


class Velocity(nn.Module):
    """v = n - x_0 at `x_t = (1 - t) x_0 + t n`, from x, t and a class."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.classes = nn.Embedding(CLASSES + 1, 16)
        sides = (2 + 1 + 16, width, width, width)
        layers = [[nn.Linear(a, b), nn.SiLU()] for a, b in pairwise(sides)]
        self.body = nn.Sequential(*(one for pair in layers for one in pair), nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.body(torch.cat([x, t[:, None], self.classes(cond)], dim=1))


def draw(count: int) -> tuple[Tensor, Tensor]:
    """Points of three arms of a spiral, and which arm each is of."""
    labels = torch.randint(CLASSES, (count,))
    radius = torch.rand(count).sqrt()
    angle = 2.0 * torch.pi * labels / CLASSES + 3.0 * radius
    points = 1.5 * radius * torch.stack([angle.cos(), angle.sin()])
    return points.T + 0.05 * torch.randn(count, 2), labels


def train(net: Velocity, steps: int) -> None:
    """Flow matching; one label in ten is dropped, which is what CFG needs."""
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(steps):
        clean, labels = draw(512)
        labels = torch.where(torch.rand(512) < 0.1, CLASSES, labels)
        noise, t = torch.randn_like(clean), torch.rand(512)
        x = torch.lerp(clean, noise, t[:, None])
        loss = nn.functional.mse_loss(net(x, t, labels), noise - clean)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval().requires_grad_(False)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("own_network.png"))
    options.add_argument("--steps", type=int, default=3000, help="of training")
    options.add_argument("--samples", type=int, default=2000)
    chosen = options.parse_args()

    torch.manual_seed(0)
    net = Velocity()
    train(net, chosen.steps)
    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), shape=(2,), null=CLASSES)

    labels = [i % CLASSES for i in range(chosen.samples)]
    ways = {
        "no guidance": None,
        "CFG(2)": fg.CFG(2.0),
        "CFG(2) within an interval": fg.CFG(2.0, schedule=fg.interval(0.1, 2.0)),
    }
    samples = {
        name: fg.sample(model, labels, guidance, fg.heun, steps=20, seeds=range(chosen.samples))
        for name, guidance in ways.items()
    }
    picture(samples, labels, chosen.out)
    print(f"{chosen.samples} samples a way: {chosen.out}")


def picture(samples: dict[str, Tensor], labels: list[int], out: Path) -> None:
    """A plot for each way, a colour for each class (needs matplotlib)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(samples), figsize=(4 * len(samples), 4))
    for axis, (name, points) in zip(axes, samples.items(), strict=True):
        axis.scatter(*points.T, c=labels, s=3, cmap="viridis")
        axis.set(title=name, xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
    figure.tight_layout()
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main()
