"""Networks that ship with fastguide; any other callable `net(x, t, cond)` works as well."""

from fastguide.nets.dit import DiT

NETS = {"DiT": DiT}

__all__ = ["NETS", "DiT"]
