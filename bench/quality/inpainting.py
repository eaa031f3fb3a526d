"""Does inpainting sample what is likely beside what is known? Two pixels, both -1 or both 1 with a
standard deviation of 0.6, whose scores are exact: given the first, the moments of the second are
known. Prints them beside those of replacement alone and of resampled runs (RePaint), with the
evaluations each takes.

    make inpainting
"""

from __future__ import annotations

import math

import torch
from results import console
from rich.table import Table

import fastguide as fg
from fastguide.nets import GaussianMixture

FIRST, STD, STEPS, COUNT = 0.25, 0.6, 40, 6000
PROCESSES = {
    "vp": (fg.VP("cosine"), "eps"),
    "edm": (fg.EDM(sigma_min=0.02, sigma_max=20.0), "edm"),
    "flow": (fg.Flow(), "flow"),
}
SOLVERS = {
    "replaced alone": fg.ddpm,
    "resampled(5, jump=1)": fg.resampled(times=5, jump=1),
    "resampled(20, jump=1)": fg.resampled(times=20, jump=1),
    "resampled(10, jump=10)": fg.resampled(times=10, jump=10),
}


def model_of(process: fg.VP | fg.EDM | fg.Flow, name: str) -> fg.Model:
    """The exact model of the two pixels."""
    prediction = fg.Prediction(name, sigma_data=0.5)
    means = torch.stack([torch.full((1, 1, 2), -1.0), torch.full((1, 1, 2), 1.0)]).double()
    net = GaussianMixture(means, [STD] * 2, [0.5, 0.5], process, prediction)
    return fg.Model(net, process, prediction, (1, 1, 2))


def main() -> None:
    """Print the table."""
    mean = math.tanh(FIRST / STD**2)
    variance = STD**2 + 1.0 - mean**2
    known = torch.tensor([FIRST, 0.0]).view(1, 1, 2)
    mask = torch.tensor([1.0, 0.0]).view(1, 1, 2)
    table = Table(
        title=f"the second pixel beside {FIRST}: mean {mean:.3f}, variance {variance:.3f}; "
        f"a standard error of the mean is {(variance / COUNT) ** 0.5:.3f}"
    )
    for column in ("process", "steps", "evaluations", "mean", "variance"):
        table.add_column(column)
    spacing = fg.karras(sigma_min=0.02, sigma_max=15.0)
    for name, (process, prediction) in PROCESSES.items():
        model = model_of(process, prediction)
        for title, solver in SOLVERS.items():
            sampler = fg.Sampler(model, None, solver, STEPS, spacing)
            second = sampler(None, range(COUNT), known=known, mask=mask)[..., 1]
            found = (f"{second.mean().item():.3f}", f"{second.var().item():.3f}")
            table.add_row(name, title, str(sampler.plan.evaluations), *found)
    console.print(table)


if __name__ == "__main__":
    main()
