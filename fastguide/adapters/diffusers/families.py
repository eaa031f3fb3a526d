"""How the pipelines of each family call their network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        net: the attribute that is the network.
        scale: the argument that turns on negative rows; None where there are none.
        null_first: whether negative rows come first.
        separate: whether they come in a call of their own.
        refused: arguments that change the prediction in ways that are not ours.
        why_relayed: why the pipeline combines its rows itself; the positive ones come first, and
            its `do_classifier_free_guidance` asks for three for each sample.
    """

    net: str
    scale: str | None = "guidance_scale"
    null_first: bool = True
    separate: bool = False
    refused: tuple[str, ...] = ()
    why_relayed: str | None = None


_SD = Family("unet")
_SD3 = Family("transformer", refused=("skip_guidance_layers",))
_FLUX = Family("transformer", "true_cfg_scale", separate=True)
_PLAIN = Family("unet", None)
_TEXT = Family("transformer")
_FLUX_ALONE = Family("transformer", None)  # its pipeline has no true_cfg_scale
_EDITS = Family("unet", None, why_relayed="its pipeline combines text and image conditions itself")
FAMILIES: dict[str, Family] = {
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
