"""Solvers: generators of `Update`s from `Levels`. An unknown name lists those there are."""

from fastguide.options import by_name
from fastguide.solvers.ddim import ddim, ddpm, euler_ancestral
from fastguide.solvers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, dpmpp_3m_sde
from fastguide.solvers.edm import euler, heun
from fastguide.solvers.update import Solver, Update

SOLVERS: dict[str, Solver] = {
    solver.name: solver
    for solver in (
        ddim,
        ddpm,
        dpmpp_2m,
        dpmpp_2m_sde,
        dpmpp_3m,
        dpmpp_3m_sde,
        euler,
        euler_ancestral,
        heun,
    )
}


def solver_by_name(name: str) -> Solver:
    """A solver by its name, with options as in "ddim:eta=1"."""
    return by_name("solver", name, SOLVERS)


__all__ = [
    "SOLVERS",
    "Solver",
    "Update",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "solver_by_name",
]
