"""Solvers: generators of `Update`s from `Levels`; `__all__` is what `fastguide` has of them."""

from fastguide.common.options import Configured
from fastguide.solvers.adams import deis, lms
from fastguide.solvers.cfgpp import (
    ddim_cfgpp,
    dpmpp_2m_cfgpp,
    dpmpp_2s_ancestral_cfgpp,
    euler_ancestral_cfgpp,
)
from fastguide.solvers.consistency import consistency
from fastguide.solvers.ddim import ddim, ddpm, euler_ancestral
from fastguide.solvers.dpm import (
    dpm_2,
    dpm_2_ancestral,
    dpm_fast,
    dpm_single,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    dpmpp_single,
)
from fastguide.solvers.dpmpp import dpm_2m, dpm_3m, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from fastguide.solvers.edm import euler, heun
from fastguide.solvers.er_sde import er_sde
from fastguide.solvers.langevin import annealed_langevin, predictor_corrector
from fastguide.solvers.pndm import ipndm, ipndm_v, pndm
from fastguide.solvers.res import (
    gradient_estimation,
    gradient_estimation_cfgpp,
    res_multistep,
    res_multistep_cfgpp,
)
from fastguide.solvers.resampled import resampled, restart
from fastguide.solvers.runge_kutta import rho_rk
from fastguide.solvers.sa import sa_solver
from fastguide.solvers.unipc import unipc
from fastguide.solvers.update import Solver, Update

plms = pndm(warmup=False)
s_pndm = pndm(warmup=False, order=2)
res_multistep_ancestral = res_multistep(eta=1.0)

__all__ = [
    "Update",
    "annealed_langevin",
    "consistency",
    "ddim",
    "ddim_cfgpp",
    "ddpm",
    "deis",
    "dpm_2",
    "dpm_2_ancestral",
    "dpm_2m",
    "dpm_3m",
    "dpm_fast",
    "dpm_single",
    "dpmpp_2m",
    "dpmpp_2m_cfgpp",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfgpp",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "dpmpp_single",
    "er_sde",
    "euler",
    "euler_ancestral",
    "euler_ancestral_cfgpp",
    "gradient_estimation",
    "gradient_estimation_cfgpp",
    "heun",
    "ipndm",
    "ipndm_v",
    "lms",
    "plms",
    "pndm",
    "predictor_corrector",
    "res_multistep",
    "res_multistep_ancestral",
    "res_multistep_cfgpp",
    "resampled",
    "restart",
    "rho_rk",
    "s_pndm",
    "sa_solver",
    "unipc",
]

SOLVERS: dict[str, Solver] = {
    name: globals()[name] for name in __all__ if isinstance(globals()[name], Configured)
}
