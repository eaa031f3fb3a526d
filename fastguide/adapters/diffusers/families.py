"""How the pipelines of each family call their network, and what their scale means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastguide.adapters.diffusers.scales import cfg_terms, with_cut
from fastguide.guidance.base import Guidance
from fastguide.guidance.norm import CFGNorm


@dataclass(frozen=True)
class Norm:
    """What a pipeline does to its guided prediction's norm; `CFGNorm` in our words.

    Args:
        axes, grows: as for `fastguide.CFGNorm`.
        asks: the call's argument that turns it on, a flag or the cap itself; None: always.
    """

    axes: int | None
    grows: bool
    asks: str | None = None

    def applied(self, guidance: Guidance, value: Any) -> Guidance:
        """`guidance` with it; `value` is that of the argument."""
        if not value:
            return guidance
        cap = 1.0 if self.grows else float(value)
        return CFGNorm(guidance, self.axes, cap, self.grows)


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        net: the attribute that is the network.
        scale: the argument that turns on negative rows; None where there are none.
        null_first: whether negative rows come first.
        separate: whether they come in a call of their own, after that of the others.
        asks: whether negative rows also need a negative prompt.
        refused: arguments that change the prediction in ways that are not ours.
        lacks: what the pipeline's scale lacks to be ours: 1 where it computes `c + s (c - u)`.
        norm: what it does to the norm of what is guided.
        cut: the argument that ends guidance early, by the share of "steps" or of "time" that it
            names: `(argument, "steps")`.
        second: the attribute of another network, for the levels below a boundary, and the argument
            that is its scale.
        distilled: the flag of the pipeline's config with which it has no negative rows.
        whole: why stages that we have are not for this pipeline.
        why_relayed: why the pipeline combines its rows itself; the positive ones come first, and
            its `do_classifier_free_guidance` asks for three for each sample.
    """

    net: str
    scale: str | None = "guidance_scale"
    null_first: bool = True
    separate: bool = False
    asks: bool = False
    refused: tuple[str, ...] = ()
    lacks: float = 0.0
    norm: Norm | None = None
    cut: tuple[str, str] | None = None
    second: tuple[str, str] | None = None
    distilled: str | None = None
    whole: str | None = None
    why_relayed: str | None = None

    def ours(self, scale: float) -> float:
        """The scale of `fastguide.CFG` that the pipeline's own is."""
        return scale + self.lacks

    def theirs(self, scale: float) -> float:
        """The inverse."""
        return scale - self.lacks


@dataclass(frozen=True)
class Habits:
    """What a call asks of its pipeline's habits.

    Args:
        norm: of `Family.norm.asks`.
        cut: the share of the run after which there is no guidance.
    """

    norm: Any = True
    cut: float = 1.0

    def kept(self, family: Family, guidance: Guidance | None) -> Guidance | None:
        """The guidance with them; a CFGNorm that it has takes the place of the pipeline's."""
        if guidance is None or not cfg_terms(guidance):
            return guidance
        if family.cut is not None and self.cut < 1.0:
            guidance = with_cut(guidance, self.cut, family.cut[1])
        if family.norm is None or any(term.branch.norm is not None for term in guidance.terms()):
            return guidance
        return family.norm.applied(guidance, self.norm)


NONE = Habits(None)
_SD = Family("unet")
_SD3 = Family("transformer", refused=("skip_guidance_layers",))
_FLUX = Family("transformer", "true_cfg_scale", separate=True, asks=True)
_PLAIN = Family("unet", None)
_TEXT = Family("transformer")
_FLUX_ALONE = Family("transformer", None)  # its pipeline has no true_cfg_scale
_EDITS = Family("unet", None, why_relayed="its pipeline combines text and image conditions itself")
_APART = Family("transformer", separate=True)
_OTHER_IMAGES = "its input holds tokens of other images"
_KONTEXT = Family("transformer", "true_cfg_scale", separate=True, asks=True, whole=_OTHER_IMAGES)
_QWEN = Family("transformer", "true_cfg_scale", separate=True, asks=True, norm=Norm(-1, True))
_WAN = Family("transformer", separate=True, second=("transformer_2", "guidance_scale_2"))
FAMILIES: dict[str, Family] = {
    "AllegroPipeline": _TEXT,
    "AuraFlowPipeline": _TEXT,
    "ChromaPipeline": _APART,
    "ChromaImg2ImgPipeline": _APART,
    "CogVideoXPipeline": Family("transformer", refused=("use_dynamic_cfg",)),
    "CogView4Pipeline": _APART,
    "Flux2Pipeline": Family("transformer", None),
    "Flux2KleinPipeline": Family("transformer", separate=True, distilled="is_distilled"),
    "FluxKontextPipeline": _KONTEXT,
    "HiDreamImagePipeline": _TEXT,
    "HunyuanVideoPipeline": Family("transformer", "true_cfg_scale", separate=True, asks=True),
    "KolorsPipeline": _SD,
    "Krea2Pipeline": Family("transformer", separate=True, lacks=1.0),
    "LTXPipeline": _TEXT,
    "Lumina2Pipeline": Family(
        "transformer",
        separate=True,
        norm=Norm(-1, True, "cfg_normalization"),
        cut=("cfg_trunc_ratio", "steps"),
    ),
    "MochiPipeline": _TEXT,
    "QwenImagePipeline": _QWEN,
    "QwenImageImg2ImgPipeline": _QWEN,
    "QwenImageInpaintPipeline": _QWEN,
    "QwenImageEditPipeline": _QWEN,
    "QwenImageEditPlusPipeline": _QWEN,
    "SanaVideoPipeline": _TEXT,
    "StableAudioPipeline": _TEXT,
    "WanPipeline": _WAN,
    "WanImageToVideoPipeline": _WAN,
    "WanVACEPipeline": _WAN,
    "WanVideoToVideoPipeline": _APART,
    "ZImagePipeline": Family(
        "transformer",
        null_first=False,
        lacks=1.0,
        norm=Norm(None, False, "cfg_normalization"),
        cut=("cfg_truncation", "time"),
    ),
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionControlNetPipeline": _SD,
    "StableDiffusionControlNetImg2ImgPipeline": _SD,
    "StableDiffusionControlNetInpaintPipeline": _SD,
    "StableDiffusionXLPipeline": _SD,
    "StableDiffusionXLImg2ImgPipeline": _SD,
    "StableDiffusionXLInpaintPipeline": _SD,
    "StableDiffusionXLControlNetPipeline": _SD,
    "StableDiffusionXLControlNetImg2ImgPipeline": _SD,
    "StableDiffusionXLControlNetInpaintPipeline": _SD,
    "StableDiffusionXLControlNetUnionPipeline": _SD,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": _SD,
    "StableDiffusionXLControlNetUnionInpaintPipeline": _SD,
    "StableDiffusionAdapterPipeline": _SD,
    "StableDiffusionXLAdapterPipeline": _SD,
    "StableDiffusionInstructPix2PixPipeline": _EDITS,
    "StableDiffusionXLInstructPix2PixPipeline": _EDITS,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "StableDiffusion3ControlNetPipeline": _SD3,
    "StableDiffusion3ControlNetInpaintingPipeline": _SD3,
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxControlNetPipeline": _FLUX,
    "FluxControlNetImg2ImgPipeline": _FLUX_ALONE,
    "FluxControlNetInpaintPipeline": _FLUX_ALONE,
    "PixArtAlphaPipeline": _TEXT,
    "PixArtSigmaPipeline": _TEXT,
    "SanaPipeline": _TEXT,
    "SanaControlNetPipeline": _TEXT,
    "DiTPipeline": Family("transformer", null_first=False),
    "DDPMPipeline": _PLAIN,
    "DDIMPipeline": _PLAIN,
}


def family_of(pipe: object) -> Family:
    """That of a pipeline.

    Raises:
        ValueError: a pipeline that we do not have.
    """
    kind = type(pipe).__name__
    if kind not in FAMILIES:
        raise ValueError(f"pipe is a {kind}, but it should be one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind]
