"""DPM-Solver-12 and -23 (Lu et al. 2022a, appendix C; k-diffusion): two orders that share their
evaluations, and a controller of the step in log(sigma / alpha).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastguide import ops
from fastguide.process import Level, Process
from fastguide.sampling.field import Field
from fastguide.sampling.integrate import MOST
from fastguide.solvers.ddim import ancestral_split
from fastguide.solvers.dpm import inner_levels, scaled
from fastguide.solvers.stages import exponential

HIGHEST = 80.0  # sigma / alpha that pure noise begins at


class DPMAdaptive:
    """`run(x, first, rtol, atol)`: x at the level `last`, and the steps accepted and rejected."""

    def __init__(
        self,
        field: Field,
        process: Process,
        seeds: Tensor,
        last: Level,
        order: int,
        eta: float,
        s_noise: float,
    ) -> None:
        if order not in (2, 3):
            raise ValueError(f"order is {order}, but it should be 2 or 3")
        self.field, self.process, self.seeds, self.last = field, process, seeds, last
        self.order, self.eta, self.s_noise = order, eta, s_noise

    def __call__(
        self, x: Tensor, first: Level, rtol: float, atol: float
    ) -> tuple[Tensor, int, int]:
        now, size, accepted, rejected, drawn = first, 0.05, 0, 0, 0
        if now.alpha == 0.0:  # pure noise: down to where its signal is as weak as usual
            now = self.process.at_ratio(HIGHEST)
            image = self.field(x, first)
            x = now.alpha * image + now.sigma / first.sigma * x
        power = -1.0 / (1.5 if self.eta else self.order)
        before = x / now.alpha
        y = before
        while math.log(now.ratio / self.last.ratio) > 1e-5:
            if accepted + rejected >= MOST:
                raise RuntimeError(f"no end after {MOST} steps; rtol, atol are {rtol}, {atol}")
            ratio = max(self.last.ratio, now.ratio * math.exp(-size))
            to = self.last if ratio == self.last.ratio else self.process.at_ratio(ratio)
            down, up = ancestral_split(now, to, self.eta)
            if up:
                down = max(down, self.last.ratio)
                up = math.sqrt(max(to.ratio**2 - down**2, 0.0))
            low, high = self._pair(y, now, down)
            scale = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
            error = ((low - high) / scale).flatten(1).square().mean(1).sqrt().max().item()
            factor = 1.0 + math.atan((error + 1e-8) ** power - 1.0)
            if factor >= 0.81:
                before, y, now = low, high, to
                accepted += 1
                if up * self.s_noise:
                    drawn += 1
                    draw = ops.noise(self.seeds, y.shape[1:], drawn)
                    y = y + up * self.s_noise * draw
            else:
                rejected += 1
            size *= factor
        return y * now.alpha, accepted, rejected

    def _pair(self, y: Tensor, now: Level, ratio: float) -> tuple[Tensor, Tensor]:
        """y at sigma / alpha = `ratio` by the lower and the higher order, which share values."""
        at = inner_levels(self.process, now, ratio, self.order)
        end = scaled(Level(0.0, 1.0, 1.0), ratio)
        high, _ = exponential(at, end, on_noise=True, exact=True)
        low, _ = exponential(at[:-1], end, on_noise=True)
        x, values = y * now.alpha, list[Tensor]()
        for stage, level in zip([None, *high[:-1]], at, strict=True):
            if stage is not None:
                x = _sum(y * now.alpha, stage.base, stage.weights, values)
            values.append((x - level.alpha * self.field(x, level)) / level.sigma)
        start = y * now.alpha
        ends = low[-1], high[-1]
        lower, higher = (_sum(start, end.base, end.weights, values) for end in ends)
        return lower, higher


def _sum(x: Tensor, base: float, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return base * x + sum(w * v for w, v in zip(weights, values, strict=False) if w)
