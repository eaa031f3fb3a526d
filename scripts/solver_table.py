"""Writes the table of all solvers into docs/solvers.md.

Orders are those that the tests measure (tests/solvers/orders.py), evaluations and noise are counted
on plans, other names are those that `fastguide.solver` knows, papers are listed here.

    python scripts/solver_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fastguide as fg
from fastguide.common.options import Configured
from fastguide.solvers import SOLVERS
from fastguide.solvers.names import aliases

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/solvers.md"
BEGIN, END = "<!-- solvers -->\n", "<!-- /solvers -->"
sys.path.insert(0, str(ROOT / "tests/solvers"))

from orders import EVERYWHERE, LATE, ON_THE_MIXTURE  # noqa: E402

CFGPP = "CFG++, Chung et al. 2024"
SOURCES = {
    "annealed_langevin": "Song and Ermon 2019, 2020",
    "consistency": "Song et al. 2023, algorithm 1",
    "ddim": "Song et al. 2021, eq. 12 and 16",
    "ddim_cfgpp": CFGPP,
    "ddpm": "Ho et al. 2020; Nichol and Dhariwal 2021",
    "deis": "Zhang and Chen 2022: tAB, rhoAB, log-rhoAB",
    "dpm_2": "DPM-Solver-2 with churn, k-diffusion",
    "dpm_2_ancestral": "k-diffusion",
    "dpm_2m": "DPM-Solver multistep, Lu et al. 2022",
    "dpm_3m": "DPM-Solver multistep, Lu et al. 2022",
    "dpm_fast": "DPM-Solver-fast, Lu et al. 2022; k-diffusion",
    "dpm_single": "DPM-Solver-2, -3, Lu et al. 2022",
    "dpmpp_2m": "DPM-Solver++(2M), Lu et al. 2022",
    "dpmpp_2m_cfgpp": CFGPP,
    "dpmpp_2m_sde": "SDE-DPM-Solver++(2M), Lu et al. 2022",
    "dpmpp_2s_ancestral": "k-diffusion",
    "dpmpp_2s_ancestral_cfgpp": f"{CFGPP}; ComfyUI",
    "dpmpp_3m": "DPM-Solver++(3M), Lu et al. 2022",
    "dpmpp_3m_sde": "k-diffusion, diffusers",
    "dpmpp_sde": "k-diffusion",
    "dpmpp_single": "DPM-Solver++(2S, 3S), Lu et al. 2022",
    "er_sde": "ER-SDE-Solver, Cui et al. 2023",
    "euler": "Karras et al. 2022",
    "euler_ancestral": "k-diffusion",
    "euler_ancestral_cfgpp": CFGPP,
    "gradient_estimation": "Permenter and Yuan 2024",
    "gradient_estimation_cfgpp": "Permenter and Yuan 2024; ComfyUI",
    "heun": "Karras et al. 2022, algorithm 2",
    "ipndm": "Zhang and Chen 2022",
    "ipndm_v": "Zhou et al. 2024",
    "lms": "k-diffusion",
    "plms": "Liu et al. 2022, as Stable Diffusion runs it",
    "pndm": "Liu et al. 2022, F-PNDM",
    "predictor_corrector": "Song et al. 2021",
    "res_multistep": "RES, Zhang et al. 2023; ComfyUI",
    "res_multistep_ancestral": "ComfyUI",
    "res_multistep_cfgpp": "ComfyUI",
    "resampled": "RePaint, Lugmayr et al. 2022",
    "restart": "Xu et al. 2023, algorithm 1",
    "rho_rk": "rhoRK, Zhang and Chen 2022",
    "s_pndm": "S-PNDM, Liu et al. 2022",
    "sa_solver": "SA-Solver, Xue et al. 2023",
    "unipc": "Zhao et al. 2023",
}


def counted(solver: Configured[Any], steps: int) -> int:
    """Evaluations of a run on EDM levels."""
    levels = fg.make_levels(fg.EDM(), steps, fg.karras)
    return sum(update.at is not None for update in solver.run(levels))


def evaluations(name: str, solver: Configured[Any]) -> str:
    """How many for N steps: `a N + b`, from two runs."""
    if name in ("resampled", "restart"):
        return {"resampled": "times N", "restart": "+ those of the restarts"}[name]
    # whole numbers of groups of steps
    low, high = counted(solver, 13), counted(solver, 25)
    each, left = divmod(high - low, 12)
    if left:
        raise ValueError(f"{name} takes {low} and {high} evaluations for 13 and 25 steps")
    more = low - 13 * each
    return ("N" if each == 1 else f"{each} N") + (f" {'-+'[more > 0]} {abs(more)}" if more else "")


def noise(solver: Configured[Any]) -> str:
    """Whether it draws any."""

    def draws(one: Configured[Any]) -> bool:
        updates = one.run(fg.make_levels(fg.EDM(), 13, fg.karras))
        return any("noise" in update.x for update in updates)

    off = {"eta": 0.0, "tau": 0.0, "noise_scaler": "ode"}
    on = {"eta": 0.5, "churn": 5.0}
    for option, value in off.items():
        if option in solver.defaults and draws(solver) and not draws(solver(**{option: value})):
            return f"yes, unless {option}={value:g}" if value != "ode" else f"yes, unless {value}"
    for option, value in on.items():
        if option in solver.defaults and not draws(solver) and draws(solver(**{option: value})):
            return f"with {option}"
    return "yes" if draws(solver) else "no"


def orders(name: str, solver: Configured[Any]) -> str:
    """That of the solver as it is, then those with other options."""
    found: dict[str, int] = {}
    for one, order in EVERYWHERE + ON_THE_MIXTURE + LATE:
        if one.function is not solver.function or solver.options.items() - one.options.items():
            continue
        if name == "pndm" and one.options.get("warmup") is False:
            continue  # plms and s_pndm have rows of their own
        more = {k: v for k, v in one.options.items() if k not in solver.options}
        found[", ".join(f"{k}={v}" for k, v in more.items())] = order
    usual = found.pop("", None)
    parts = [] if usual is None else [str(usual)]
    parts += [f"{order} with {text}" for text, order in found.items() if order != usual]
    return "; ".join(parts) or "-"


def table() -> str:
    """The table, a row a solver."""
    rows = [
        "| solver | order of a run | evaluations for N steps | noise | source | also called |",
        "|---|---|---|---|---|---|",
    ]
    others = aliases()
    for name, solver in SOLVERS.items():
        row = (
            f"`{name}`",
            orders(name, solver),
            evaluations(name, solver),
            noise(solver),
            SOURCES[name],
            ", ".join(f"`{other}`" for other in others[name] if other != name),
        )
        rows.append(f"| {' | '.join(row)} |".replace("|  |", "| |"))
    return "\n".join(rows) + "\n"


def page() -> str:
    """The page with the table of now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
