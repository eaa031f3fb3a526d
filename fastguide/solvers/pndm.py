"""Linear multistep solvers with given weights: PNDM, PLMS and iPNDM.

As those of `fastguide.solvers.adams` on y = x / alpha over r = sigma / alpha, with Adams and
Bashforth's weights for equal steps, or published ones for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.adams import adams_step, falling, history
from fastguide.solvers.edm import trapezoid
from fastguide.solvers.runge_kutta import RUNGE_KUTTA
from fastguide.solvers.stages import staged, tableau
from fastguide.solvers.update import Map, Update, combine, eps, transfer
from fastguide.spacing import Levels

_ADAMS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@Configured
def pndm(
    levels: Levels, warmup: bool = True, middle: str = "t", order: int = 4
) -> Iterator[Update]:
    """PNDM (Liu et al. 2022): Adams-Bashforth weights for equal steps, on DDIM's transfer.

    `warmup` starts with three pseudo Runge-Kutta steps of 4 evaluations ("F-PNDM", 9 more in all);
    without (PLMS, as Stable Diffusion runs it) the first step is corrected by a second evaluation
    at its end and the order rises from there, to `order`; 2 is S-PNDM. Runge-Kutta evaluates
    half-way in "t" as published, or in "ratio". The weights are exact for levels that are equally
    spaced in r: there the order is 4 (with middle="ratio"), elsewhere 2. Not for inversion.
    """
    if middle not in ("t", "ratio"):
        raise ValueError(f"middle is {middle!r}, but it should be 't' or 'ratio'")
    if order not in (2, 3, 4):
        raise ValueError(f"order is {order}, but it should be 2, 3 or 4")
    falling(levels, "pndm")
    most = int(order) - 1
    steps = list(levels.steps())
    known = 0
    for i, (now, to) in enumerate(steps):
        if now.alpha == 0.0 or to.alpha == 0.0:  # pure noise: nothing to extrapolate from
            yield Update(now, transfer(now, to))
            continue
        keep = history(now, known, most + 1)
        if warmup and known < most and to.sigma > 0.0:
            mid = _middle(levels, now, to, middle)
            at = [now, mid, mid, to]
            yield from staged(at, *tableau(at, to, RUNGE_KUTTA["rk4"]), keep)
        elif known == 0 and i + 1 < len(steps) and to.sigma > 0.0:
            yield from _corrected(now, to, keep)
        else:
            weights = _ADAMS[min(known, most) + 1]
            gains = [(to.ratio - now.ratio) * w for w in weights[1:]]
            yield Update(now, adams_step(now, to, gains), keep)
        known += 1


def _middle(levels: Levels, now: Level, to: Level, middle: str) -> Level:
    if middle == "t":
        return levels.process.level(0.5 * (now.t + to.t))
    return levels.process.at_ratio(0.5 * (now.ratio + to.ratio))


def _corrected(now: Level, to: Level, keep: dict[str, Map]) -> Iterator[Update]:
    """One step by the mean of the eps at both of its ends."""
    half, corrected = trapezoid(now, to, "ratio")
    yield Update(now, transfer(now, to), {**keep, "half": half})
    yield Update(to, corrected)


@Configured
def ipndm(levels: Levels, order: int = 4, to_data: bool = False) -> Iterator[Update]:
    """Improved PNDM (Zhang and Chen 2022): the weights of pndm, whose order rises from 1 over the
    first steps instead of a warm-up. The last step, to the data, is of order 1, or with `to_data`
    extrapolates too (diffusers).
    """
    yield from _by_weights(levels, order, to_data, lambda steps: _ADAMS[len(steps)])


@Configured
def ipndm_v(levels: Levels, order: int = 4, to_data: bool = False) -> Iterator[Update]:
    """iPNDM with weights for steps that vary (Zhou et al. 2024, diff-sampler), as published: those
    of order 2 are exact, those of 3 and 4 are so for equal steps only, and on others those of 4 do
    not sum to 1; `lms` has them exact.
    """
    yield from _by_weights(levels, order, to_data, _varying)


def _by_weights(
    levels: Levels,
    order: int,
    to_data: bool,
    weights: Callable[[Sequence[float]], Sequence[float]],
) -> Iterator[Update]:
    """Steps of `weights(sizes)` of the eps now and before; sizes of this step and those before."""
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}, but it should be 1, 2, 3 or 4")
    if order != 1:
        falling(levels, "ipndm")
    sizes: list[float] = []  # in r, newest first
    for now, to in levels.steps():
        if now.alpha == 0.0 or to.alpha == 0.0:
            yield Update(now, transfer(now, to))
            sizes = []
            continue
        known = min(len(sizes), int(order) - 1)
        sizes = [to.ratio - now.ratio, *sizes[:known]]
        exact = to_data or to.sigma > 0.0
        found = [sizes[0] * w for w in weights(sizes)] if known and exact else [sizes[0]]
        x = adams_step(now, to, found[1:])
        x = combine((1.0, x), (to.alpha * (sum(found) - sizes[0]), eps(now)))
        yield Update(now, x, history(now, known, int(order)))


def _varying(steps: Sequence[float]) -> list[float]:
    """Of 1 to 4 steps, newest first: w0 = 1 + a + b + c and so on, from Newton's differences."""
    if len(steps) == 1:
        return [1.0]
    h, h1 = steps[:2]
    line = 0.5 * h / h1
    out = [1.0 + line, -line, 0.0, 0.0]
    if len(steps) > 2:
        h2 = steps[2]
        bend = 0.5 * (1.0 - h * h / (3.0 * h1 * (h1 + h2)))
        for k, w in enumerate((1.0, -(1.0 + h1 / h2), h1 / h2)):
            out[k] += bend * w
    if len(steps) > 3:
        h3 = steps[3]
        share = h / (h + h1)
        cubic = 0.5 * (1.0 - share / 3.0) + (1.0 - share / 2.0) * h / (6.0 * (h + h1 + h2))
        cubic *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        near, far = h1 / h2, h1 * (h1 + h2) / (h2 * (h2 + h3))
        for k, w in enumerate((1.0, -(1.0 + near + far), near + far * (1.0 + h2 / h3))):
            out[k] += cubic * w
        out[3] -= cubic * far * near
    return out[: len(steps)]
