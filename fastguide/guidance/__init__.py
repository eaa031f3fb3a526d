"""Guidance methods and the schedules of their weights."""

from fastguide.guidance.base import POSITIVE, Branch, Guidance, Term
from fastguide.guidance.cfg import CFG, Superconditioning
from fastguide.guidance.frequency import FDG
from fastguide.guidance.gradients import ClassifierGuidance, CLIPGuidance, EnergyGuidance
from fastguide.guidance.layers import PAG, SEG, SLG, STG, TPG
from fastguide.guidance.nag import NAG
from fastguide.guidance.others import ICG, SIMS, TSG, AutoGuidance
from fastguide.guidance.projections import APG, MAMBO, TCFG, Adaptive, CFGZeroStar
from fastguide.guidance.reg import REG
from fastguide.guidance.sag import SAG
from fastguide.guidance.schedule import Schedule, constant, cosine, interval, linear

__all__ = [
    "APG",
    "MAMBO",
    "TCFG",
    "Adaptive",
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
    "POSITIVE",
    "SAG",
    "SEG",
    "SIMS",
    "SLG",
    "STG",
    "TPG",
    "TSG",
    "AutoGuidance",
    "Branch",
    "Guidance",
    "Schedule",
    "Superconditioning",
    "Term",
    "constant",
    "cosine",
    "interval",
    "linear",
]
