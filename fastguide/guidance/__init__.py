"""Guidance methods and the schedules of their weights."""

from fastguide.guidance.base import POSITIVE, Branch, Guidance, Term
from fastguide.guidance.cfg import CFG, Superconditioning
from fastguide.guidance.schedule import Schedule, constant, cosine, interval, linear

__all__ = [
    "CFG",
    "POSITIVE",
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
