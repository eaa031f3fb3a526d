"""What others call spacings, as data."""

from __future__ import annotations

from fastguide.common.options import Configured, by_name
from fastguide.spacing import SPACINGS, Levels

# also as the end of a solver's name, as in "DPM++ 2M Karras"
SPACING_NAMES = {
    **{name: name for name in SPACINGS},
    "align_your_steps": "ays",
    "align_your_steps_gits": "ays:table=gits_sd15",
    "ays_gits": "ays:table=gits_sd15",
    "ays_sd15": "ays:table=sd15",
    "ays_sdxl": "ays:table=sdxl",
    "ays_svd": "ays:table=svd",
    "ddim_uniform": "leading:offset=1",
    "gits_sdxl": "ays:table=gits_sdxl",
    "lambda_uniform": "exponential",
    "logsnr": "exponential",
    "normal": "linspace",
    "sd3": "shifted:shift=3",
    "uniform": "linspace",
}


def spacing_by_name(name: str) -> Configured[Levels]:
    """A spacing by any of its names, with options as in "karras:rho=5".

    Raises:
        ValueError: an unknown name, or an option that is no number or word.
        TypeError: an unknown option.
    """
    head, colon, options = name.partition(":")
    if head not in SPACINGS and head in SPACING_NAMES:
        found = SPACING_NAMES[head]
        name = f"{found}{',' if ':' in found else ':'}{options}" if colon else found
    return by_name("spacing", name, SPACINGS)
