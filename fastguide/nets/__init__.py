"""Networks that ship with fastguide; any other callable `net(x, t, cond)` works as well."""

from fastguide.nets.dit import DiT
from fastguide.nets.mixture import GaussianMixture

NETS = {"DiT": DiT}

__all__ = ["NETS", "DiT", "GaussianMixture"]
