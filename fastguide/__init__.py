"""fastguide: guided sampling of diffusion and flow models, every method at the speed of the
hardware.
"""

from fastguide.assets import load
from fastguide.checkpoint import CheckpointError, save
from fastguide.engine.run import Progress
from fastguide.guidance import (
    CFG,
    Guidance,
    Superconditioning,
    constant,
    cosine,
    interval,
    linear,
)
from fastguide.model import Model
from fastguide.ops import noise
from fastguide.process import EDM, VP, Flow, Level, Prediction
from fastguide.sample import NonFiniteError, Sampler, sample
from fastguide.solvers import (
    Update,
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
from fastguide.spacing import Levels, karras, leading, linspace, make_levels, shifted, trailing

__version__ = "0.1.0"

__all__ = [
    "CFG",
    "EDM",
    "VP",
    "CheckpointError",
    "Flow",
    "Guidance",
    "Level",
    "Levels",
    "Model",
    "NonFiniteError",
    "Prediction",
    "Progress",
    "Sampler",
    "Superconditioning",
    "Update",
    "constant",
    "cosine",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "interval",
    "karras",
    "leading",
    "linear",
    "linspace",
    "load",
    "make_levels",
    "noise",
    "sample",
    "save",
    "shifted",
    "trailing",
]
