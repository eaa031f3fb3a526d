"""Spacings that visit whole training timesteps t = 0 ... T - 1 of a VP process.

Solvers see only (alpha, sigma) of consecutive levels, so the betas of the shortened process,
`1 - abar_i / abar_(i-1)`, come out by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fastguide.common.options import Configured
from fastguide.process import VP, Process
from fastguide.spacing.levels import Levels


def _timesteps(process: Process, spacing: str, steps: int) -> int:
    if not isinstance(process, VP):
        raise ValueError(
            f"spacing is {spacing!r}, which counts training timesteps, but process is {process}; "
            "use linspace or karras"
        )
    if steps > process.timesteps:
        raise ValueError(f"steps is {steps}, but the process has {process.timesteps} timesteps")
    return process.timesteps


def _visit(process: Process, rising: Iterable[int]) -> Levels:
    return Levels.from_times(process, map(float, sorted(set(rising), reverse=True)))


@Configured
def leading(process: Process, steps: int, offset: int = 0) -> Levels:
    """t = i floor(T / N) + offset, i = N-1 ... 0: DDIM's and Stable Diffusion's (offset 1)."""
    stride = _timesteps(process, "leading", steps) // steps
    return _visit(process, (i * stride + int(offset) for i in range(steps)))


@Configured
def trailing(process: Process, steps: int) -> Levels:
    """t = round(T - i T / N) - 1, i = 0 ... N-1: starts at the last timestep (Lin et al. 2023)."""
    total = _timesteps(process, "trailing", steps)
    return _visit(process, (round(total - i * total / steps) - 1 for i in range(steps)))


@Configured
def simple(process: Process, steps: int) -> Levels:
    """t = T - 1 - floor(i T / N), i = 0 ... N-1 (ComfyUI)."""
    total = _timesteps(process, "simple", steps)
    return _visit(process, (total - 1 - i * total // steps for i in range(steps)))


@Configured
def turbo(process: Process, steps: int) -> Levels:
    """t = (10 - i) T / 10 - 1, i = 0 ... N-1, N at most 10: the levels that SD-Turbo and SDXL-Turbo
    were trained at (Sauer et al. 2023); they are meant for 1 to 4 steps.
    """
    total = _timesteps(process, "turbo", steps)
    if steps > 10:
        raise ValueError(f"steps is {steps}, but spacing 'turbo' has 10 levels")
    return _visit(process, ((10 - i) * total // 10 - 1 for i in range(steps)))


@Configured
def quadratic(process: Process, steps: int) -> Levels:
    """t = floor((i sqrt(0.8 T) / (N - 1))^2), i = N-1 ... 0: the "quad" of DDIM's code (Song et al.
    2021, appendix D.2).

    It starts at 0.8 T, where little signal is left under linear betas. Timesteps that fall on the
    same number are visited once, so large N give fewer steps; DDIM's step between two of them would
    change nothing.
    """
    top = math.sqrt(0.8 * _timesteps(process, "quadratic", steps))
    roots = [i * (top / max(steps - 1, 1)) for i in range(steps - 1)] + [top]
    return _visit(process, (int(root * root) for root in roots))


@Configured
def ddim_stride(process: Process, steps: int) -> Levels:
    """t = i stride for the smallest whole stride that visits exactly N of T: the "ddimN" of
    guided-diffusion.

    Raises:
        ValueError: no stride does; the nearest N that has one is named.
    """
    total = _timesteps(process, "ddim_stride", steps)
    strides = {len(range(0, total, i)): i for i in reversed(range(1, total))}
    if steps not in strides:
        nearest = min(strides, key=lambda count: abs(count - steps))
        raise ValueError(
            f"steps is {steps}, but no whole stride visits {steps} of {total} timesteps; "
            f"the nearest count that one does is {nearest}"
        )
    return _visit(process, range(0, total, strides[steps]))


@Configured
def respaced(
    process: Process, steps: int, sections: str | float | Sequence[int] | None = None
) -> Levels:
    """T cut into equal sections, each visited evenly from its first timestep to its last, rounded:
    guided-diffusion's respacing.

    A section of n steps over s timesteps has the stride (s - 1) / (n - 1), and of one step its
    first timestep.

    Args:
        sections: steps of each section, from the least noise up, which add up to N: (10, 10, 20),
            "10+10+20". One section by default.
    """
    total = _timesteps(process, "respaced", steps)
    counts = _counts(sections, steps)
    if sum(counts) != steps:
        raise ValueError(f"sections is {sections!r}, {sum(counts)} steps, but steps is {steps}")
    size, longer = divmod(total, len(counts))  # the first sections take what is left over
    visited, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < longer)
        if count > length:
            raise ValueError(
                f"sections is {sections!r}, but section {i} has {length} timesteps for {count}"
            )
        position = 0.0
        for _ in range(count):  # summed up as there, which decides how halves round
            visited.append(start + round(position))
            position += (length - 1) / max(count - 1, 1)
        start += length
    return _visit(process, visited)


def _counts(sections: str | float | Sequence[int] | None, steps: int) -> list[int]:
    if sections is None:
        return [steps]
    if isinstance(sections, str):
        parts: Iterable[str | float] = sections.split("+")
    else:
        parts = [sections] if isinstance(sections, (int, float)) else sections
    try:
        counts = [float(part) for part in parts]
    except ValueError:
        counts = []
    if not counts or any(count < 0 or not count.is_integer() for count in counts):
        raise ValueError(
            f"sections is {sections!r}, but it should be steps per section, "
            "as in (10, 10, 20) or '10+10+20'"
        )
    return [int(count) for count in counts]
