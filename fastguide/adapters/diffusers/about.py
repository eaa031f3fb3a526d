"""What is known of a pipeline's family: its convention, its defaults, its layers, and which of them
publications perturb.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from fastguide.adapters.diffusers.families import Family, family_of
from fastguide.adapters.diffusers.network import class_name
from fastguide.adapters.diffusers.networks import adapt
from fastguide.staging.contract import Staged, layers_of


@dataclass(frozen=True)
class Recommended:
    """A perturbation as its source has it.

    Args:
        method: the name of a guidance of fastguide.
        weight: its weight there, counted from 0.
        layers: as `layers` takes them.
        share: from which to which share of the steps; None for all.
        source: who says so.
    """

    method: str
    weight: float | None
    layers: tuple[str | int, ...]
    share: tuple[float, float] | None
    source: str


@dataclass(frozen=True)
class PipelineFamily:
    """What `fastguide.family` says of a pipeline.

    Args:
        pipeline, network, scheduler: names of classes; `network` of the one that is guided.
        second: the attribute of the network of the levels below the pipeline's boundary.
        argument: of a call, the scale of its CFG; None where it has no negative rows.
        default: of that scale, as `fastguide.CFG` counts: 1 is off.
        formula: what the pipeline makes of its scale s, of positive c and negative u.
        habits: what it does beside that, which `fastguide.guide` keeps.
        negative: how it runs negative rows: "batch" with the others, or "apart", in a call of
            their own.
        layers, middle: the names that guidance can reach, and those that "mid" stands for; none
            where the network's layers are not reached as it is, for the reason `why_none`.
        recommended: perturbations by their sources, strongest evidence first.
    """

    pipeline: str
    network: str
    second: str | None
    scheduler: str
    argument: str | None
    default: float | None
    formula: str
    habits: tuple[str, ...]
    negative: str | None
    layers: tuple[str, ...]
    middle: tuple[str, ...]
    why_none: str | None
    recommended: tuple[Recommended, ...]


_MID = (
    Recommended("PAG", 3.0, ("mid",), None, "Ahn et al. 2024 (PAG), U-Nets"),
    Recommended("SEG", 3.0, ("mid",), None, "Hong 2024 (SEG), SDXL"),
)
_BLOCKS_789 = tuple(f"transformer_blocks.{i}" for i in (7, 8, 9))
_SINGLE_789 = tuple(f"single_transformer_blocks.{i}" for i in (7, 8, 9))
RECOMMENDED: dict[str, tuple[Recommended, ...]] = {
    "UNet2DConditionModel": _MID,
    "UNet2DModel": _MID[:1],
    "SD3Transformer2DModel": (
        Recommended("SLG", 2.5, _BLOCKS_789, (0.01, 0.2), "Stability AI's sd3.5 repository"),
        Recommended("SLG", 2.8, _BLOCKS_789, (0.01, 0.2), "diffusers, StableDiffusion3Pipeline"),
    ),
    "FluxTransformer2DModel": (
        Recommended(
            "SLG", 3.0, (*_BLOCKS_789, *_SINGLE_789), (0.01, 0.15), "ComfyUI, SkipLayerGuidanceDiT"
        ),
    ),
    "WanTransformer3DModel": (
        Recommended("SLG", None, ("blocks.10",), None, "usual among users of Wan, on='negative'"),
    ),
    "MochiTransformer3DModel": (
        Recommended("STG", 1.0, ("transformer_blocks.34",), None, "Hyung et al. 2024 (STG)"),
    ),
}


def family(pipe: Any) -> PipelineFamily:
    """See `fastguide.adapters.diffusers.family`."""
    known = family_of(pipe)
    net = getattr(pipe, known.net)
    if net is None and known.second is not None:
        net = getattr(pipe, known.second[0])
    name = class_name(net)
    adapted = adapt(net, 1.0, known.whole)
    staged = isinstance(adapted, Staged)
    layers = layers_of(adapted) if isinstance(adapted, Staged) else ()
    chosen = RECOMMENDED.get(name, ())
    there = {"mid", *layers}
    return PipelineFamily(
        type(pipe).__name__,
        name,
        None if known.second is None else known.second[0],
        type(pipe.scheduler).__name__,
        known.scale,
        _default(pipe, known),
        _formula(known),
        _habits(known),
        None if known.scale is None else ("apart" if known.separate else "batch"),
        layers,
        adapted.middle if isinstance(adapted, Staged) else (),
        None if staged else getattr(adapted, "why_not_staged", None),
        tuple(one for one in chosen if set(one.layers) <= there),
    )


def _default(pipe: Any, known: Family) -> float | None:
    if known.scale is None:
        return None
    value = inspect.signature(type(pipe).__call__).parameters[known.scale].default
    return None if value is None else known.ours(float(value))


def _formula(known: Family) -> str:
    if known.scale is None:
        return "c"
    return "c + s (c - u)" if known.lacks else "u + s (c - u)"


def _habits(known: Family) -> tuple[str, ...]:
    found = []
    if known.norm is not None:
        when = "always" if known.norm.asks is None else f"where {known.norm.asks} is set"
        axes = "all of a sample" if known.norm.axes is None else f"axis {known.norm.axes}"
        how = "equals" if known.norm.grows else "is at most a multiple of"
        found.append(f"its norm along {axes} {how} that of c ({when})")
    if known.cut is not None:
        found.append(f"no guidance after the share {known.cut[0]} of the {known.cut[1]}")
    if known.second is not None:
        found.append(f"{known.second[0]} below a boundary, with the scale {known.second[1]}")
    return tuple(found)
