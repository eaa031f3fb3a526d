"""Which noise levels a run of N steps visits: levels of falling noise, and the data after them.

Every spacing is a function of (process, steps, options) that returns `Levels`.
"""

from fastguide.common.checks import check_int
from fastguide.common.options import Configured
from fastguide.process import EDM, VP, Process
from fastguide.spacing.gits_table import gits
from fastguide.spacing.levels import Levels
from fastguide.spacing.quantiles import beta
from fastguide.spacing.sigmas import exponential, karras, kl_optimal, polyexponential
from fastguide.spacing.tables import ays
from fastguide.spacing.times import flux, linspace, sgm_uniform, shifted, shifted_by_size
from fastguide.spacing.timesteps import (
    ddim_stride,
    leading,
    quadratic,
    respaced,
    simple,
    trailing,
    turbo,
)

__all__ = [
    "Levels",
    "ays",
    "beta",
    "ddim_stride",
    "exponential",
    "flux",
    "gits",
    "karras",
    "kl_optimal",
    "leading",
    "linspace",
    "make_levels",
    "polyexponential",
    "quadratic",
    "respaced",
    "sgm_uniform",
    "shifted",
    "shifted_by_size",
    "simple",
    "trailing",
    "turbo",
]

SPACINGS: dict[str, Configured[Levels]] = {
    name: globals()[name]
    for name in __all__
    if isinstance(globals().get(name), Configured)  # not the class nor `make_levels`
}


def default_spacing(process: Process) -> Configured[Levels]:
    """trailing for VP, karras for EDM, linspace for flow."""
    return trailing if isinstance(process, VP) else karras if isinstance(process, EDM) else linspace


def make_levels(process: Process, steps: int, spacing: Configured[Levels] | None = None) -> Levels:
    """The levels of `steps` steps.

    Raises:
        ValueError: steps < 1, or a spacing that the process does not have.
    """
    check_int("steps", steps)
    return (spacing or default_spacing(process)).run(process, steps)
