"""Guidance methods and schedules of their weights; `__all__` is what `fastguide` has of them."""

from fastguide.common.arguments import answering_class
from fastguide.guidance.base import Guidance
from fastguide.guidance.branches import PerpNeg, TextImageCFG
from fastguide.guidance.cfg import CFG, Superconditioning
from fastguide.guidance.frequency import FDG
from fastguide.guidance.gradients import ClassifierGuidance, CLIPGuidance, EnergyGuidance
from fastguide.guidance.layers import PAG, SEG, SLG, STG, TPG
from fastguide.guidance.nag import NAG
from fastguide.guidance.norm import CFGNorm
from fastguide.guidance.others import ICG, SIMS, TSG, AutoGuidance
from fastguide.guidance.projections import APG, MAMBO, TCFG, Adaptive, CFGZeroStar
from fastguide.guidance.reg import REG
from fastguide.guidance.sag import SAG
from fastguide.guidance.schedule import constant, cosine, interval, linear
from fastguide.guidance.text import parse

__all__ = [
    "APG",
    "MAMBO",
    "TCFG",
    "Adaptive",
    "CFGNorm",
    "CFGZeroStar",
    "REG",
    "FDG",
    "ClassifierGuidance",
    "CLIPGuidance",
    "EnergyGuidance",
    "CFG",
    "ICG",
    "NAG",
    "PAG",
    "PerpNeg",
    "SAG",
    "SEG",
    "SIMS",
    "SLG",
    "STG",
    "TPG",
    "TSG",
    "AutoGuidance",
    "Guidance",
    "Superconditioning",
    "TextImageCFG",
    "constant",
    "cosine",
    "interval",
    "linear",
    "parse",
]

for _one in [globals()[name] for name in __all__]:
    if isinstance(_one, type) and _one is not Guidance:
        answering_class(_one)
