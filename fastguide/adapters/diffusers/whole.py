"""A diffusers network as one: called as its pipeline calls it, whatever is on its modules."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fastguide.adapters.diffusers.blocks import blocks_of
from fastguide.adapters.diffusers.network import Adapted, Call, dtype_of
from fastguide.staging.conditions import Fixed, Ragged

TIMES = ("timestep", "timesteps", "t")
FIXED = "same for all rows"
REFERENCE = "other images' tokens"
PLACES = ("img_ids", "txt_ids", "position_ids", "image_rotary_emb", "rotary_embedding")  # of tokens


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
        self.told = blocks_of(net)
        self.__dict__["layout"] = layout
        self.made_from: Any = None  # of `networks.made`
        self.static: dict[str, Any] = {}  # of the last call: arguments that are the same for all
        forward = type(getattr(net, "_orig_mod", net)).forward
        self.arguments = tuple(inspect.signature(forward).parameters)[1:]
        self.time = next((name for name in TIMES if name in self.arguments), "timestep")
        takes, returns = int(net.config.in_channels), getattr(net.config, "out_channels", None)
        self.extra = returns is not None and takes > returns and not self.told.packed
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
        if self.times_of_tokens:
            raise ValueError(
                "the pipeline gives its network a time for each token, and guidance that runs the "
                "network beside the pipeline's own calls has one for each sample"
            )
        given = {"encoder_hidden_states": cond} if isinstance(cond, Tensor) else (cond or {})
        given = dict(given)
        fixed = given.pop(FIXED, None)
        fixed = self.static if fixed is None else dict(fixed.values)
        reference = given.pop(REFERENCE, None)
        tokens = x.shape[1]
        if self.extra:
            x = torch.cat([x, given.pop("extra").to(x.dtype)], 1)
        x = self.pack(x.to(computes_in(self.net)))
        if reference is not None:
            x = torch.cat([x, reference.to(x.dtype)], 1)
        for name, axis in self.told.axes:
            if name in given:
                given[name] = given[name].movedim(0, axis)
        for name in self.told.lists:
            if name in given:
                rows = given[name]
                given[name] = list(rows.rows if isinstance(rows, Ragged) else rows.unbind())
        arguments = merged(fixed, given)
        arguments[self.arguments[0]] = list(x.unsqueeze(2).unbind()) if self.told.lists else x
        t = 1.0 - t if self.told.backwards else t
        arguments[self.time] = t if self.time_scale == 1.0 else t * self.time_scale
        return self.answer(self.net(**arguments, return_dict=False)[0], tokens)

    def answer(self, out: Any, tokens: int) -> Tensor:
        """What the network returned as a prediction; of packed latents the first `tokens`."""
        if self.told.lists:
            out = torch.stack(tuple(out)).squeeze(2)
        if self.told.packed and self.layout is None:
            out = out[:, :tokens]
        return -self.unpack(out) if self.told.negated else self.unpack(out)

    def as_returned(self, like: Tensor) -> Any:
        """A prediction in the form in which the network returns one."""
        return list(like.unsqueeze(2).unbind()) if self.told.lists else like

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
        if self.told.lists:
            x = torch.stack(tuple(x)).squeeze(2)
        time = given.pop(self.time, None)
        self.times_of_tokens = isinstance(time, Tensor) and time.ndim > 1
        given.pop("return_dict", None)
        tokens = self._own_tokens(given) if self.told.packed else None
        others = tokens is not None and tokens < x.shape[1]
        if others:  # which do not lie on the latents' grid
            self.__dict__["layout"] = None
        if self.layout is not None:
            self.layout.place(given)
        parts = {k: _parted(k, v, x.shape[0], self.told.axes) for k, v in given.items()}
        cond = {k: rows for k, (rows, _) in parts.items() if rows is not None}
        self.static = {k: same for k, (_, same) in parts.items() if same is not None}
        for name in self.told.lists:
            if isinstance(given.get(name), (list, tuple)):
                cond[name] = Ragged(tuple(given[name]))
                self.static.pop(name, None)
        if self.static:
            cond[FIXED] = self._fixed()
        varying = {}
        if self.extra:
            x, varying["extra"] = x[:, : self.channels], x[:, self.channels :]
        if others:
            x, varying[REFERENCE] = x[:, :tokens], x[:, tokens:]
        return Call(x, cond or None, varying)

    def _fixed(self) -> Fixed:
        """`static`; the same object as one of the last two calls', where it holds the same."""
        for one in self._known:
            names = one.values.keys() == self.static.keys()
            if names and all(self.static[name] is value for name, value in one.values.items()):
                return one
        self._known = (*self._known[-1:], Fixed(self.static))
        return self._known[-1]

    def _own_tokens(self, given: dict[str, Any]) -> int | None:
        """How many of the packed tokens are the latents', which come first: by the shapes of all
        images, or by places whose first coordinate is another for other images.
        """
        shapes, ids = given.get("img_shapes"), given.get("img_ids")
        if shapes is not None:
            first = shapes[0][0] if isinstance(shapes[0], (list, tuple)) else shapes[0]
            first = first if isinstance(first, (list, tuple)) else shapes[0]
            return int(first[0] * first[1] * first[2])
        if isinstance(ids, Tensor) and (ids is not self._places[0]):
            one = ids.reshape(-1, *ids.shape[-2:])[0]
            self._places = (ids, int((one[:, 0] == one[0, 0]).sum()))
        return self._places[1] if isinstance(ids, Tensor) else None

    times_of_tokens = False  # in the last call
    _known: tuple[Fixed, ...] = ()
    _places: tuple[Any, int | None] = (None, None)  # the last call's, whose number is known


def computes_in(net: Any) -> torch.dtype:
    """The floating-point type of a network's input, which may not be that of its weights."""
    own = getattr(net, "dtype", None)
    return own if isinstance(own, torch.dtype) and own.is_floating_point else dtype_of(net)


def _parted(name: str, value: Any, rows: int, axes: tuple[tuple[str, int], ...]) -> tuple[Any, Any]:
    """Of an argument what has rows, and what is the same for all; a dict may hold both."""
    found = _of_rows(name, value, rows, axes)
    if found is not None:
        return _copied(found), None
    if not isinstance(value, dict):
        return None, value
    parts = {key: _parted(key, one, rows, ()) for key, one in value.items()}
    inside = {key: one for key, (one, _) in parts.items() if one is not None}
    if not inside:
        return None, value
    return inside, {key: one for key, (_, one) in parts.items() if one is not None} or None


def _copied(value: Any) -> Any:
    """The same leaves in dicts and lists of their own: a pipeline of Flux writes the image of its
    negative rows where that of the positive ones was.
    """
    if isinstance(value, dict):
        return {name: _copied(one) for name, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def merged(static: dict[str, Any], cond: dict[str, Any]) -> dict[str, Any]:
    """The arguments again, in dicts and lists of their own: a network may change what it is given,
    as those of IP-Adapters and T2I-Adapters do.
    """
    found: dict[str, Any] = _copied(static)
    for name, value in cond.items():
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = merged(found[name], value) if both else _copied(value)
    return found


def _of_rows(name: str, value: Any, rows: int, axes: tuple[tuple[str, int], ...]) -> Any:
    """The argument with its rows first; None where it has none."""
    axis = dict(axes).get(name, 0)
    if axis and isinstance(value, Tensor):
        value = value.movedim(axis, 0)
    if name in PLACES and not (isinstance(value, Tensor) and value.ndim > 2):
        return None
    return value if _is_rows(value, rows) else None


def _is_rows(value: Any, rows: int) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(_is_rows(leaf, rows) for leaf in value.values())
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_is_rows(leaf, rows) for leaf in value)
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows
