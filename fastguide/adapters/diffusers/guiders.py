"""What diffusers' own guiders say, as guidances of ours: with the meaning that their settings have,
and without what is wrong in their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastguide.guidance.base import Guidance
from fastguide.guidance.cfg import CFG
from fastguide.guidance.layers import PAG, SEG, SLG
from fastguide.guidance.projections import APG, MAMBO, TCFG, CFGZeroStar
from fastguide.guidance.schedule import shares
from fastguide.process import Level


@dataclass(frozen=True)
class Steps:
    """1 from the step `int(start N)` on to the one before `int(stop N)`, else 0."""

    start: float
    stop: float

    def values(self, levels: Sequence[Level]) -> list[float]:
        """One for each evaluation."""
        found = shares(levels)
        count = len(set(found))
        first, end = int(self.start * count), int(self.stop * count)
        return [float(first <= round(share * count) < end) for share in found]


def from_guider(guider: Any) -> Guidance:
    """See `fastguide.adapters.diffusers.from_guider`."""
    kind = type(guider).__name__
    make = _MADE.get(kind)
    if make is None:
        raise ValueError(f"guider is a {kind}, but it should be one of {', '.join(sorted(_MADE))}")
    config = guider.config
    if not getattr(guider, "_enabled", True):
        return CFG(1.0)
    found = make(config)
    rescale = config.get("guidance_rescale", 0.0)
    return found.rescale(float(rescale)) if rescale else found


def _cfg(config: Any) -> CFG:
    scale = float(config["guidance_scale"]) + float(bool(config.get("use_original_formulation")))
    return CFG(scale, _within(float(config["start"]), float(config["stop"])))


def _within(start: float, stop: float) -> Steps | None:
    return None if (start, stop) == (0.0, 1.0) else Steps(start, stop)


def _apg(config: Any) -> Guidance:
    radius = float(config["adaptive_projected_guidance_rescale"])
    norm = config.get("adaptive_projected_guidance_norm_dim")
    if norm is not None:
        raise ValueError(
            f"adaptive_projected_guidance_norm_dim is {norm}, but fastguide.APG takes norms of "
            "whole samples alone"
        )
    return APG(
        _cfg(config),
        float(config["eta"]),
        radius if radius > 0.0 else math.inf,
        float(config["adaptive_projected_guidance_momentum"] or 0.0),
    )


def _zero(config: Any) -> Guidance:
    return CFGZeroStar(_cfg(config), int(config["zero_init_steps"]))


def _layered(
    cls: Callable[..., Guidance], prefix: str, scale: str, **options: str
) -> Callable[[Any], Guidance]:
    def make(config: Any) -> Guidance:
        weight = float(config[scale])
        within = _within(float(config[f"{prefix}_start"]), float(config[f"{prefix}_stop"]))
        others = {ours: config[theirs] for ours, theirs in options.items()}
        if "sigma" in others and others["sigma"] > config["seg_blur_threshold_inf"]:
            others["sigma"] = math.inf
        layers = _layers(config, prefix)
        return _cfg(config) + cls(weight, layers=layers, schedule=within, **others)

    return make


def _layers(config: Any, prefix: str) -> list[Any]:
    """Names of blocks, or their numbers."""
    told = config.get(f"{prefix}_layers")
    if told is not None:
        return [told] if isinstance(told, int) else list(told)
    names = ("skip_layer_config", "perturbed_guidance_config", "seg_guidance_config")
    told = next(config[name] for name in names if config.get(name) is not None)
    found: list[Any] = []
    for one in told if isinstance(told, (list, tuple)) else [told]:
        data = one if isinstance(one, dict) else vars(one)
        own = data["indices"]
        numbers = [own] if isinstance(own, int) else list(own)
        listed = data["fqn"] == "auto"
        found += numbers if listed else [f"{data['fqn']}.{i}" for i in numbers]
    return found


_MADE: dict[str, Callable[[Any], Guidance]] = {
    "ClassifierFreeGuidance": _cfg,
    "AdaptiveProjectedGuidance": _apg,
    "ClassifierFreeZeroStarGuidance": _zero,
    "TangentialClassifierFreeGuidance": lambda config: TCFG(_cfg(config)),
    "MagnitudeAwareGuidance": lambda config: MAMBO(_cfg(config), float(config["alpha"])),
    "SkipLayerGuidance": _layered(SLG, "skip_layer_guidance", "skip_layer_guidance_scale"),
    "PerturbedAttentionGuidance": _layered(PAG, "perturbed_guidance", "perturbed_guidance_scale"),
    "SmoothedEnergyGuidance": _layered(
        SEG, "seg_guidance", "seg_guidance_scale", sigma="seg_blur_sigma"
    ),
}
