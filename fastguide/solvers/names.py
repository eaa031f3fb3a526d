"""What other libraries call solvers and spacings, as data, and one lookup for all names.

A name may end with that of a spacing: "DPM++ 2M Karras" and "dpmpp_2m_karras" are `dpmpp_2m` on
`karras`. Case, spaces and signs do not matter. Our own names, written as ours, mean our defaults.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from fastguide.common.checks import did_you_mean
from fastguide.common.options import Configured, by_name
from fastguide.solvers import SOLVERS
from fastguide.solvers.update import Solver
from fastguide.spacing import Levels
from fastguide.spacing.names import SPACING_NAMES, spacing_by_name


class Named(NamedTuple):
    """A solver, and the spacing that its name asks for; None for the model's usual one."""

    solver: Solver
    spacing: Configured[Levels] | None = None


# k-diffusion, ComfyUI and AUTOMATIC1111, as `plain` writes them
SAMPLER_NAMES = {
    "euler_a": "euler_ancestral",
    "euler_cfg_pp": "ddim_cfgpp",
    "euler_ancestral_cfg_pp": "euler_ancestral_cfgpp",
    "ddim_cfgpp": "ddim_cfgpp",
    "ddim_cfg_pp": "ddim_cfgpp",
    "heun": "heun:over=ratio",
    "dpm2": "dpm_2",
    "dpm2_a": "dpm_2_ancestral",
    "dpm_2_a": "dpm_2_ancestral",
    "dpmpp_2s_a": "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp": "dpmpp_2s_ancestral_cfgpp",
    "dpmpp_sde_gpu": "dpmpp_sde",
    "dpmpp_2m_cfg_pp": "dpmpp_2m_cfgpp",
    "dpmpp_2m_sde_gpu": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun": "dpmpp_2m_sde:solver_type=heun",
    "dpmpp_2m_sde_heun_gpu": "dpmpp_2m_sde:solver_type=heun",
    "dpmpp_3m_sde": "dpmpp_3m_sde:published=true",
    "dpmpp_3m_sde_gpu": "dpmpp_3m_sde:published=true",
    "er_sde": "er_sde:points=200",
    "gradient_estimation_cfg_pp": "gradient_estimation_cfgpp",
    "lcm": "consistency:sigma_min=0",
    "res_multistep_cfg_pp": "res_multistep_cfgpp",
    "res_multistep_ancestral_cfg_pp": "res_multistep_cfgpp:eta=1",
    "sa_solver_pece": "sa_solver:pece=true",
    "uni_pc": "unipc:order=3,variant=bh1,lower_order_final=true",
    "uni_pc_bh2": "unipc:order=3,variant=bh2,lower_order_final=true",
}

# diffusers: each class as it is by default, and its default spacing
SCHEDULERS: dict[str, tuple[str, str | None]] = {
    "DDIMScheduler": ("ddim:rederive=false", "leading"),
    "DDPMScheduler": ("ddpm", "leading"),
    "DEISMultistepScheduler": ("deis:order=2", "sgm_uniform"),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "sgm_uniform"),
    "DPMSolverSDEScheduler": ("dpmpp_sde", "linspace"),
    "DPMSolverSinglestepScheduler": (
        "dpmpp_single:inner=levels,lower_order_final=false",
        "sgm_uniform",
    ),
    "EDMDPMSolverMultistepScheduler": ("dpmpp_2m", "karras"),
    "EDMEulerScheduler": ("euler", "karras"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace"),
    "EulerDiscreteScheduler": ("euler", "linspace"),
    "FlowMatchEulerDiscreteScheduler": ("euler", None),
    "FlowMatchHeunDiscreteScheduler": ("heun", None),
    "HeunDiscreteScheduler": ("heun:over=ratio", "linspace"),
    "IPNDMScheduler": ("ipndm:to_data=true", None),
    "KDPM2AncestralDiscreteScheduler": ("dpm_2_ancestral", "linspace"),
    "KDPM2DiscreteScheduler": ("dpm_2", "linspace"),
    "LMSDiscreteScheduler": ("lms", "linspace"),
    "PNDMScheduler": ("pndm", "leading"),
    "SASolverScheduler": (
        "sa_solver:simple_order_2=true,lower_order_final=true",
        "sgm_uniform",
    ),
    "UniPCMultistepScheduler": ("unipc:lower_order_final=true", "sgm_uniform"),
}

_PLAIN_SCHEDULERS = {name.lower(): named for name, named in SCHEDULERS.items()}

# what has no fixed number of steps, or that we do not have
_ELSEWHERE = {
    "dpm_adaptive": 'it chooses its own steps: fastguide.ode(..., method="dpm_adaptive")',
    "rk45": 'it chooses its own steps: fastguide.ode(..., method="rk45")',
}


def plain(name: str) -> str:
    """`name` in lower case, "++" as "pp", words joined by one underscore, without "sample"."""
    text = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("++", "pp")).strip("_")
    return text.removeprefix("sample_").removeprefix("k_")


def named(name: str) -> Named:
    """A solver by any of its names, with options as in "ddim:eta=1", and the spacing in the name.

    Raises:
        ValueError: an unknown name; the nearest known one is named. Or an option that is no
            number or word.
        TypeError: an unknown option.
    """
    head, colon, options = name.partition(":")
    if head in SOLVERS:
        return Named(by_name("solver", name, SOLVERS))
    key = plain(head)
    if key in _ELSEWHERE:
        raise ValueError(f"solver is {head!r}, but {_ELSEWHERE[key]}")
    found, spacing = _looked_up(key)
    if found is None:
        raise ValueError(
            f"solver is {head!r}, but it should be one of {', '.join(sorted(SOLVERS))}, or what "
            "diffusers, k-diffusion or ComfyUI call them"
            + did_you_mean(head, [*SOLVERS, *SAMPLER_NAMES, *SCHEDULERS])
        )
    if colon:  # after the alias's own options, which it may change
        found = f"{found}{',' if ':' in found else ':'}{options}"
    return Named(by_name("solver", found, SOLVERS), spacing_by_name(spacing) if spacing else None)


def _looked_up(key: str) -> tuple[str | None, str | None]:
    """A solver and a spacing as our own names say them."""
    whole = _alone(key)
    if whole is not None:
        return whole
    for end in sorted(SPACING_NAMES, key=len, reverse=True):
        first = _alone(key.removesuffix(f"_{end}")) if key.endswith(f"_{end}") else None
        if first is not None:
            return first[0], SPACING_NAMES[end]
    return None, None


def _alone(key: str) -> tuple[str, str | None] | None:
    if key in _PLAIN_SCHEDULERS:
        return _PLAIN_SCHEDULERS[key]
    if key in SAMPLER_NAMES:
        return SAMPLER_NAMES[key], None
    return (key, None) if key in SOLVERS else None


def aliases() -> dict[str, list[str]]:
    """For each of our solvers the other names that lead to it."""
    out: dict[str, list[str]] = {name: [] for name in SOLVERS}
    for other, spec in SAMPLER_NAMES.items():
        out[spec.partition(":")[0]].append(other)
    for other, (spec, _) in SCHEDULERS.items():
        out[spec.partition(":")[0]].append(other)
    return out
