"""Networks that ship with fastguide; any other callable `net(x, t, cond)` works as well."""

from fastguide.nets.dit import DiT
from fastguide.nets.mixture import GaussianMixture
from fastguide.nets.unet import UNet

NETS = {"DiT": DiT, "UNet": UNet}

__all__ = ["NETS", "DiT", "GaussianMixture", "UNet"]
