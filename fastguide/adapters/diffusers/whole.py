"""A diffusers network as one: called as its pipeline calls it, whatever is on its modules."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fastguide.adapters.diffusers.network import Adapted, Call, dtype_of


class Whole(nn.Module):
    """`net(x, t, **cond)`; a `cond` that is a tensor is its `encoder_hidden_states`.

    Args:
        why_not_staged: what is missing for stages.
        layout: whose `pack` and `unpack` say how a pipeline's latents lie, where not as pixels.
    """

    layout: Adapted | None

    def __init__(
        self, net: Any, time_scale: float, why_not_staged: str, layout: Adapted | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.time_scale, self.why_not_staged = time_scale, why_not_staged
        self.__dict__["layout"] = layout
        self.made_from: Any = None  # of `networks.made`
        self.static: dict[str, Any] = {}  # arguments that are the same for all rows
        forward = type(getattr(net, "_orig_mod", net)).forward
        self.arguments = tuple(inspect.signature(forward).parameters)[1:]
        takes, returns = int(net.config.in_channels), getattr(net.config, "out_channels", None)
        self.extra = returns is not None and takes > returns
        self.channels = int(returns) if self.extra else takes  # type: ignore[arg-type]

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

    def as_it_is(self) -> Any:
        """This, or another of the same network as its modules are now."""
        from fastguide.adapters.diffusers.networks import as_it_is

        return as_it_is(self)

    def of_run(self) -> Whole:
        """The same for one run, which may note in it how a call's latents lie."""
        found = copy.copy(self)
        found.__dict__["layout"] = copy.copy(self.layout)
        return found

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The prediction."""
        given = {"encoder_hidden_states": cond} if isinstance(cond, Tensor) else (cond or {})
        given = dict(given)
        if self.extra:
            x = torch.cat([x, given.pop("extra").to(x.dtype)], 1)
        arguments = merged(self.static, given)
        arguments[self.arguments[0]] = self.pack(x.to(computes_in(self.net)))
        arguments["timestep"] = t if self.time_scale == 1.0 else t * self.time_scale
        return self.unpack(self.net(**arguments, return_dict=False)[0])

    def pack(self, x: Tensor) -> Tensor:
        """As for `Adapted`."""
        return x if self.layout is None else self.layout.pack(x)

    def unpack(self, x: Tensor) -> Tensor:
        """As for `Adapted`."""
        return x if self.layout is None else self.layout.unpack(x)

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
        if self.layout is not None:
            self.layout.place(given)
        cond, self.static = _split(given, x.shape[0])
        varying = {}
        if self.extra:
            x, varying["extra"] = x[:, : self.channels], x[:, self.channels :]
        return Call(x, cond or None, varying)


def computes_in(net: Any) -> torch.dtype:
    """The floating-point type of a network's input, which may not be that of its weights."""
    own = getattr(net, "dtype", None)
    return own if isinstance(own, torch.dtype) and own.is_floating_point else dtype_of(net)


def _split(given: dict[str, Any], rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of arguments, and of dicts among them, those that have rows and those that are the same for
    all.
    """
    cond: dict[str, Any] = {}
    static: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict) and value:
            inside = _split(value, rows)
            cond |= {name: inside[0]} if inside[0] else {}
            static |= {name: inside[1]} if inside[1] or not inside[0] else {}
        elif _is_rows(value, rows):
            cond[name] = _own_list(value)
        else:
            static[name] = _own_list(value)
    return cond, static


def _own_list(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def merged(static: dict[str, Any], cond: dict[str, Any]) -> dict[str, Any]:
    """The arguments again, in dicts and lists of their own: a network may change what it is given,
    as those of IP-Adapters and T2I-Adapters do.
    """
    found: dict[str, Any] = {}
    for name in (*static, *(name for name in cond if name not in static)):
        one, other = static.get(name), cond.get(name)
        if isinstance(one, dict) or isinstance(other, dict):
            found[name] = merged(one or {}, other or {})
        else:
            found[name] = _own_list(cond[name] if name in cond else one)
    return found


def _is_rows(value: Any, rows: int) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(_is_rows(leaf, rows) for leaf in value.values())
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_rows(leaf, rows) for leaf in value)
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows
