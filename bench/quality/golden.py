"""Guidance as it should be, exactly: what the toys are measured against, in fp64.

Guidance is to sample q(x_0) ~ p(x_0 | y) R_0(x_0), where for CFG R_0 = (p(x_0 | y) / p(x_0))^w.
The exact noise prediction is then (Gao et al. 2025, theorem 1)

    eps* = eps_c - sigma grad log E_t,    E_t(x) = integral of p(x_0 | x_t = x, y) R_0(x_0) dx_0,

which is that of a network trained on q: its denoised image is the mean of q(x_0) N(x; alpha x_0,
sigma^2). CFG takes grad log (p_t(x | y) / p_t(x))^w for grad log E_t, and REG corrects it by a
factor. Weights w are those of `pos + w (pos - ref)`: 0 is off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastguide.nets import GaussianMixture

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x [B, D], alpha and sigma [B, 1]


def gaussian_gradient(
    x: Tensor,
    alpha: float,
    sigma: float,
    cond: tuple[float, float],
    ref: tuple[float, float],
    w: float,
) -> Tensor:
    """`grad log E_t(x)` where p(x_0 | y) and p(x_0) are the Gaussians `cond` and `ref`, each (mean,
    std), of one dimension.

    With v, mu the variance and mean of p(x_0 | x_t, y) and R_0 ~ exp(b x_0 - a x_0^2 / 2) it is
    `(v alpha / sigma^2) (b - a mu) / (1 + a v)`.

    Raises:
        ValueError: q is not normalisable beside x_t, 1 + a v <= 0.
    """
    (m1, s1), (m0, s0) = cond, ref
    precision = (alpha / sigma) ** 2
    v = 1 / (s1**-2 + precision)
    mu = v * (m1 * s1**-2 + alpha / sigma**2 * x)
    a = w * (s1**-2 - s0**-2)
    b = w * (m1 * s1**-2 - m0 * s0**-2)
    if 1 + a * v <= 0:
        raise ValueError(f"w is {w}, but then R_0 grows faster than p(x_0 | x_t, y) falls")
    return v * alpha / sigma**2 * (b - a * mu) / (1 + a * v)


def log_density(mixture: GaussianMixture, x: Tensor, label: int | None = None) -> Tensor:
    """`log p(x)` `[...]` of `x` fp64 `[..., D]`, or of the components of class `label` alone."""
    logits = mixture.log_weights
    if label is not None:
        logits = logits.masked_fill(mixture.labels != label, -torch.inf)
    logits = logits - logits.logsumexp(0)
    square = (x.unsqueeze(-2) - mixture.means).square().sum(-1)
    size = x.shape[-1] * (2 * torch.pi * mixture.variances).log()
    return (logits - 0.5 * (size + square / mixture.variances)).logsumexp(-1)


@dataclass(frozen=True)
class Tabulated:
    """A density of one or two dimensions on a grid, and its exact denoiser by quadrature.

    Args:
        axes: evenly spaced points of each dimension.
        log_values: log density at the grid's points, of any normalisation.
    """

    axes: tuple[Tensor, ...]
    log_values: Tensor

    def probabilities(self) -> Tensor:
        """Of the grid's points; they sum to 1."""
        return self.log_values.flatten().softmax(0).view(self.log_values.shape)

    def denoised(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The mean of q(x_0) N(x; alpha x_0, sigma^2) `[B, D]`, as a `Denoiser`."""
        logs = [
            -0.5 * ((x[:, i : i + 1] - alpha * axis) / sigma).square()  # [B, G]
            for i, axis in enumerate(self.axes)
        ]
        if len(logs) == 1:
            return (logs[0] + self.log_values).softmax(1) @ self.axes[0].unsqueeze(1)
        first, second = (one.softmax(1) for one in logs)
        columns = (first @ self.probabilities()) * second
        rows = (second @ self.probabilities().T) * first
        total = columns.sum(1)
        means = [rows @ self.axes[0] / total, columns @ self.axes[1] / total]
        return torch.stack(means, 1)


def tilted(
    cond: Callable[[Tensor], Tensor],
    ref: Callable[[Tensor], Tensor],
    w: float,
    axes: Sequence[Tensor],
) -> Tabulated:
    """q ~ p(x_0 | y) (p(x_0 | y) / p(x_0))^w on the grid of `axes`, from both log densities."""
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    positive, reference = cond(points), ref(points)
    return Tabulated(tuple(axes), positive + w * (positive - reference))


def cfg(pos: Tensor, ref: Tensor, w: float) -> Tensor:
    """`pos + w (pos - ref)`."""
    return pos + w * (pos - ref)


def reg(
    pos: Denoiser, ref: Denoiser, w: float, x: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """REG, `pos + w c (pos - ref)` with `c = alpha d(1^T pos) / dx` elementwise, and what c stands
    for, `pos + w alpha J^T (pos - ref)`; equal in one dimension.
    """
    leaf = x.detach().requires_grad_()
    clean = pos(leaf, alpha, sigma)
    delta = clean.detach() - ref(x, alpha, sigma)
    (c,) = torch.autograd.grad(clean.sum(), leaf, retain_graph=True)
    (product,) = torch.autograd.grad(clean, leaf, delta)
    clean = clean.detach()
    return clean + w * alpha * c * delta, clean + w * alpha * product


def eps_of(denoised: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise prediction that belongs to a denoised image."""
    return (x - alpha * denoised) / sigma


def rms(error: Tensor, probabilities: Tensor | None = None) -> float:
    """Root mean square over the rows `[B, D]`, evenly or by `probabilities` `[B]`."""
    square = error.square().sum(1)
    if probabilities is None:
        return square.mean().sqrt().item()
    return ((square * probabilities).sum() / probabilities.sum()).sqrt().item()
