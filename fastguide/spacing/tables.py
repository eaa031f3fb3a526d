"""Published lists of sigmas, for other numbers of steps interpolated in their logarithm."""

from __future__ import annotations

from collections.abc import Sequence

from fastguide.common.options import Configured
from fastguide.process import Process
from fastguide.spacing.levels import Levels

# N + 1 noise levels of N steps, the last of which the data take the place of
TABLES: dict[str, tuple[float, ...]] = {
    # Align Your Steps (Sabour et al. 2024), table 3 and the authors' page
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
    # made with GITS (Chen et al. 2024) for ten steps, as AUTOMATIC1111 has them
    "gits_sd15": (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029),
    "gits_sdxl": (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029),
}


@Configured
def ays(process: Process, steps: int, table: str = "sd15") -> Levels:
    """Align Your Steps' sigmas of a `table`: "sd15", "sdxl" or "svd"; or GITS's, "gits_sd15" and
    "gits_sdxl". Those for ten steps are as published; others are interpolated in log sigma, evenly
    in the step, N + 1 of them, and the data take the place of the last.
    """
    if table not in TABLES:
        known = ", ".join(repr(name) for name in TABLES)
        raise ValueError(f"table is {table!r}, but it should be one of {known}")
    return Levels.from_sigmas(process, between_listed(TABLES[table], steps))


def between_listed(listed: Sequence[float], steps: int) -> list[float]:
    """The first N of N + 1 sigmas, interpolated in their logarithm."""
    sigmas = []
    for i in range(steps):
        at = i * (len(listed) - 1) / steps
        low = int(at)
        sigmas.append(listed[low] ** (low + 1 - at) * listed[low + 1] ** (at - low))
    return sigmas
