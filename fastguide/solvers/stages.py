"""Steps of several stages: each evaluates the network once, and the last one ends the step.

A stage is where x is for an evaluation. Stage j is a sum `base_j x + sum of weights[j][i] value_i`
of x at the step's begin and of what the evaluations before it gave: Runge-Kutta methods,
exponential or not, are their weights. What is known of later stages is kept in one slot each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fastguide.process import Level
from fastguide.solvers.dpmpp import growth, integrals
from fastguide.solvers.update import Map, Update, combine, eps

Value = Callable[[Level], Map]


@dataclass(frozen=True)
class Stage:
    """x at a stage: `base` times x at the begin of the step, `weights` of the evaluations before
    it, oldest first, and what else is added to it.
    """

    base: float
    weights: Sequence[float]
    more: Map = field(default_factory=dict)


def image(_: Level) -> Map:
    """The value of a method on the denoised image."""
    return {"denoised": 1.0}


def staged(
    at: Sequence[Level],
    stages: Sequence[Stage],
    value: Value,
    keep: Mapping[str, Map] | None = None,
) -> Iterator[Update]:
    """The updates of one step: evaluations at the levels `at`, the first of which is its begin, and
    as many stages that follow them. The first update also writes `keep`.
    """
    for i, level in enumerate(at):
        known: list[Map] = []
        for j in range(i, len(stages)):
            before: Map = {"x": stages[j].base} if i == 0 else {f"stage{j}": 1.0}
            more = stages[j].more if j == i else {}
            parts = (1.0, before), (stages[j].weights[i], value(level)), (1.0, more)
            known.append(combine(*parts))
        later = {f"stage{j}": known[j - i] for j in range(i + 1, len(stages))}
        yield Update(level, known[0], {**(keep or {} if i == 0 else {}), **later})


def tableau(
    at: Sequence[Level], to: Level, weights: Sequence[Sequence[float]]
) -> tuple[list[Stage], Value]:
    """An explicit Runge-Kutta method on x / alpha over sigma / alpha, the slope of which is eps:
    row j of `weights` leads to the level after `at[j]`, wherever that lies: the weights of a row
    are read as shares of their sum.
    """
    now, stages = at[0], []
    for end, row in zip([*at[1:], to], weights, strict=True):
        span = end.alpha * (end.ratio - now.ratio) / sum(row)
        stages.append(Stage(end.alpha / now.alpha, [span * weight for weight in row]))
    return stages, eps


def exponential(
    at: Sequence[Level], to: Level, on_noise: bool, line: str = "midpoint", exact: bool = False
) -> tuple[list[Stage], Value]:
    """DPM-Solver's single step (Lu et al. 2022) of order `len(at)`, 1 to 3, on the noise, or on the
    image as DPM-Solver++'s. The evaluations may lie anywhere between `at[0]` and `to`.

    `line` "midpoint" or "heun" (the authors' "dpmsolver" and "taylor"): a Taylor series of the
    values in lambda, all of whose terms "heun" integrates exactly. `exact` does so in the inner
    stages whatever `line` is, as the authors' third order does.
    """
    stages = []
    for j, end in enumerate([*at[1:], to]):
        h = growth(at[0], end)
        nodes = [growth(at[0], level) / h for level in at[1 : j + 1]]
        inner = exact and j + 1 < len(at)
        weights = _taylor(h, nodes, -1.0 if on_noise else 1.0, "heun" if inner else line)
        scale = end.sigma if on_noise else end.alpha
        base = end.alpha / at[0].alpha if on_noise else end.sigma / at[0].sigma
        stages.append(Stage(base, [scale * weight for weight in weights]))
    return stages, eps if on_noise else image


def _taylor(h: float, nodes: Sequence[float], rate: float, line: str) -> list[float]:
    """Weights of the values at 0 and at the `nodes`, in units of h."""
    first, second, third = integrals(rate * h)
    if not nodes:
        return [first]
    near = nodes[0]
    if len(nodes) == 1:
        gain = (0.5 * first if line == "midpoint" else second) / near
        return [first - gain, gain]
    far = nodes[1]
    if line == "midpoint":
        return [first - second / far, 0.0, second / far]
    # first and second derivative by divided differences through the three
    slopes = (
        -(far + near) / (far * near),
        far / (near * (far - near)),
        -near / (far * (far - near)),
    )
    bends = (2 / (far * near), -2 / (near * (far - near)), 2 / (far * (far - near)))
    weights = [second * slope + third * bend for slope, bend in zip(slopes, bends, strict=True)]
    return [first + weights[0], weights[1], weights[2]]


def between(now: Level, ratio: float, share: float) -> float:
    """sigma / alpha at a share of the way to `ratio` in its logarithm."""
    return math.exp((1.0 - share) * math.log(now.ratio) + share * math.log(ratio))


def apart(now: Level, to: Level) -> bool:
    """Whether lambda is finite at both ends, so that there is something between them."""
    return math.isfinite(growth(now, to)) and now.sigma > 0.0
