"""The names that `fastguide` has, each listed once: here, or in the `__all__` of its room."""

from fastguide import guidance, solvers, spacing
from fastguide.adapters.diffusers import accelerate, family, from_diffusers, from_guider, guide
from fastguide.assets import load, loader
from fastguide.checkpoint.judges import Classifier, TextImage, load_classifier, load_text_image
from fastguide.checkpoint.models import CheckpointError, save
from fastguide.common import images
from fastguide.common.heap import keep_freed_memory
from fastguide.engine.threshold import DynamicThreshold
from fastguide.engine.watch import STOP, Progress
from fastguide.guidance import *  # noqa: F403
from fastguide.guidance.judges import CleanJudge, OpenCLIP
from fastguide.model import Model
from fastguide.ops import noise
from fastguide.process import EDM, VP, ContinuousVP, Flow, Level, Prediction
from fastguide.sample import Sampler, invert, sample
from fastguide.sampling.adaptive import Solved, ode
from fastguide.sampling.finite import NonFiniteError
from fastguide.sampling.likelihood import log_likelihood
from fastguide.sampling.measurements import grey, pooled
from fastguide.sampling.rollout import Rollout
from fastguide.serving.pool import Pool
from fastguide.serving.server import Server
from fastguide.solvers import *  # noqa: F403
from fastguide.solvers.names import named as solver
from fastguide.spacing import *  # noqa: F403
from fastguide.staging.modules import ByModules

__all__ = [
    "EDM",
    "STOP",
    "VP",
    "ByModules",
    "CheckpointError",
    "Classifier",
    "CleanJudge",
    "ContinuousVP",
    "DynamicThreshold",
    "Flow",
    "Level",
    "Model",
    "NonFiniteError",
    "OpenCLIP",
    "Pool",
    "Prediction",
    "Progress",
    "Rollout",
    "Sampler",
    "Server",
    "Solved",
    "TextImage",
    "accelerate",
    "family",
    "from_diffusers",
    "from_guider",
    "grey",
    "guide",
    "images",
    "invert",
    "keep_freed_memory",
    "load",
    "load_classifier",
    "load_text_image",
    "loader",
    "log_likelihood",
    "noise",
    "ode",
    "pooled",
    "sample",
    "save",
    "solver",
]
__all__ += guidance.__all__
__all__ += solvers.__all__
__all__ += spacing.__all__
