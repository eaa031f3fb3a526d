"""Solvers: generators of `Update`s from `Levels`; `__all__` is what `fastguide` has of them."""

from fastguide.common.options import Configured, by_name
from fastguide.solvers.adams import deis, lms, pndm
from fastguide.solvers.cfgpp import ddim_cfgpp, dpmpp_2m_cfgpp, euler_ancestral_cfgpp
from fastguide.solvers.consistency import consistency
from fastguide.solvers.ddim import ddim, ddpm, euler_ancestral
from fastguide.solvers.dpmpp import dpm_2m, dpm_3m, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from fastguide.solvers.edm import euler, heun
from fastguide.solvers.langevin import annealed_langevin, predictor_corrector
from fastguide.solvers.unipc import unipc
from fastguide.solvers.update import Solver, Update

plms = pndm(warmup=False)

__all__ = [
    "Update",
    "annealed_langevin",
    "consistency",
    "ddim",
    "ddim_cfgpp",
    "ddpm",
    "deis",
    "dpm_2m",
    "dpm_3m",
    "dpmpp_2m",
    "dpmpp_2m_cfgpp",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "euler",
    "euler_ancestral",
    "euler_ancestral_cfgpp",
    "heun",
    "lms",
    "plms",
    "pndm",
    "predictor_corrector",
    "unipc",
]

SOLVERS: dict[str, Solver] = {
    name: globals()[name] for name in __all__ if isinstance(globals()[name], Configured)
}


def solver_by_name(name: str) -> Solver:
    """A solver by its name, with options as in "ddim:eta=1"."""
    return by_name("solver", name, SOLVERS)
