"""Any other diffusers network, as one stage: guidance that reaches into layers is not for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastguide.adapters.diffusers.network import Adapted, Call, dtype_of


class Whole(nn.Module):
    """`net(x, t, **cond)`; a `cond` that is a tensor is its `encoder_hidden_states`.

    Args:
        why_not_staged: what is missing for stages.
    """

    def __init__(self, net: Any, time_scale: float, why_not_staged: str) -> None:
        super().__init__()
        self.net = net
        self.time_scale, self.why_not_staged = time_scale, why_not_staged
        self.static: dict[str, Any] = {}  # arguments that are the same for all rows
        self.arguments, self.channels = Adapted(net).arguments, int(net.config.in_channels)

    @property
    def null(self) -> Any:
        """As for `Adapted`."""
        return {}

    @property
    def outputs(self) -> int:
        """As for `Adapted`."""
        config = self.net.config
        made = getattr(config, "out_channels", None)
        return 2 if made is not None and made == 2 * config.in_channels else 1

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The prediction."""
        given = {"encoder_hidden_states": cond} if isinstance(cond, Tensor) else (cond or {})
        arguments = {**self.static, **given, self.arguments[0]: x.to(dtype_of(self.net))}
        arguments["timestep"] = t if self.time_scale == 1.0 else t * self.time_scale
        return self.net(**arguments, return_dict=False)[0]

    def pack(self, x: Tensor) -> Tensor:
        """As for `Adapted`."""
        return x

    unpack = pack

    def prepare(self, cond: Any) -> Any:
        """Nothing is known of it."""
        return cond

    def gather(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """What a pipeline's call of the network means: tensors of as many rows as x are its
        conditions, all others are passed on.
        """
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        x = given.pop(self.arguments[0])
        for name in ("timestep", "return_dict"):
            given.pop(name, None)
        cond = {k: v for k, v in given.items() if _is_rows(v, x.shape[0])}
        self.static = {k: v for k, v in given.items() if k not in cond}
        return Call(x, cond or None, {})


def _is_rows(value: Any, rows: int) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(_is_rows(leaf, rows) for leaf in value.values())
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_rows(leaf, rows) for leaf in value)
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows
