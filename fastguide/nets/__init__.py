"""Networks that ship with fastguide; any other callable `net(x, t, cond)` works as well."""

from fastguide.nets.dit import DiT
from fastguide.nets.encoder import Encoder
from fastguide.nets.mixture import GaussianMixture
from fastguide.nets.text_image import TextImageNet
from fastguide.nets.unet import UNet

NETS = {"DiT": DiT, "UNet": UNet}

__all__ = ["NETS", "DiT", "Encoder", "GaussianMixture", "TextImageNet", "UNet"]
