"""Networks and pipelines of diffusers under our guidance, without leaving them.

Nothing here imports diffusers before it is given something of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastguide.guidance.base import Guidance
from fastguide.model import Model

if TYPE_CHECKING:
    from fastguide.adapters.diffusers.about import PipelineFamily


def guide(
    pipe: Any,
    guidance: Guidance | None = None,
    compile: bool | Mapping[str, Any] = False,
    check: bool = True,
    habits: bool = True,
) -> Any:
    """A pipeline that is called and managed as `pipe` is, under `guidance`, by our kernels.

    It holds the components of `pipe`, which stays as it is. Its scheduler says levels and solver.
    The guidance scale of a call (`guidance_scale`, for Flux `true_cfg_scale`; a number, or a list
    with one for each step) is that of the guidance's CFG term: without a `guidance` the pipeline's
    own CFG, beside another guidance a CFG more. Where `guidance` has a CFG, its scale is fixed.

    Args:
        pipe: a pipeline of diffusers: Stable Diffusion 1, 2, XL and 3, Flux, PixArt, Sana, DiT,
            DDPM or DDIM; also img2img, inpainting and ControlNet of the first three; and
            Qwen-Image, Z-Image, Lumina2, Wan, HunyuanVideo and others that run by their modules.
        guidance: a guidance or a sum of them. A layer is named as its module:
            "mid_block.attentions.0.transformer_blocks.0.attn1", "transformer_blocks.7"; or "mid".
        compile: compile each pattern of branches as one graph; or options of `torch.compile`.
        check: raise `fastguide.NonFiniteError` where samples are not finite, with the step at
            which they first were not; one look at the end of a call.
        habits: keep what the pipeline does beside its scale: Qwen-Image's and Lumina2's norm,
            Z-Image's cap, and where guidance is cut (`fastguide.family` says which).

    Raises:
        ValueError, TypeError: a pipeline, scheduler, flag or layer that we do not have.
    """
    from fastguide.adapters.diffusers import pipelines

    return pipelines.guide(pipe, guidance, compile, check, habits)


accelerate = guide


def family(pipe: Any) -> PipelineFamily:
    """What is known of a pipeline's family: what its guidance scale means and is by default, what
    it does beside that, its layers by name, and perturbations as their sources have them.

    Raises:
        ValueError: a pipeline that we do not have.
    """
    from fastguide.adapters.diffusers import about

    return about.family(pipe)


def from_guider(guider: Any) -> Guidance:
    """What one of diffusers' guiders says, as a guidance: ClassifierFreeGuidance,
    AdaptiveProjectedGuidance, ClassifierFreeZeroStarGuidance, TangentialClassifierFreeGuidance,
    MagnitudeAwareGuidance, SkipLayerGuidance, PerturbedAttentionGuidance, SmoothedEnergyGuidance.

    A perturbation's scale is a weight beside the positive prediction whether CFG is on or not;
    `start` belongs to its steps; APG is that of the denoised image.

    Raises:
        ValueError: another guider, or a setting that we do not have.
    """
    from fastguide.adapters.diffusers import guiders

    return guiders.from_guider(guider)


def from_diffusers(net: Any, scheduler: Any, shape: Sequence[int] | None = None) -> Model:
    """A `Model` for `fastguide.sample` of a network of diffusers and what its scheduler's config
    says about process and prediction. What `fastguide.sample` is not told is the scheduler's too:
    its levels for that number of steps, the size of its first noise, its solver and its clamp. A
    shift that follows the image's size is that of tokens of 2 x 2.

    The condition is what the network's adapter says: the text `[B, T, D]`, class labels `[B]`, or a
    dict of tensors.

    Args:
        net: pipe.unet or pipe.transformer.
        scheduler: pipe.scheduler.
        shape: of one sample (C, H, W), by default what the network's config says.

    Raises:
        ValueError, TypeError: a network or scheduler that we do not have.
    """
    from fastguide.adapters.diffusers import models

    return models.from_diffusers(net, scheduler, shape)
