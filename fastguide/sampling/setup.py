"""The model as one sampler runs it: its network in a dtype, the shape of a sample, a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastguide.common.checks import shown
from fastguide.engine.captured import Settings
from fastguide.engine.compiled import Compiled
from fastguide.engine.pattern import no_layers
from fastguide.model import Model
from fastguide.sampling.checks import check_shape, device_of, net_as
from fastguide.staging.contract import choose_layers, is_staged
from fastguide.staging.perturbation import Layers


def _as_it_is(net: Any) -> Any:
    """What an adapter says that its network is to be taken as at present, the net itself mostly."""
    look = getattr(net, "as_it_is", None)
    return net if look is None else look()


def check_as_made(net: Any) -> None:
    """Raise where a sampler's network is not what it was when the sampler was made."""
    if _as_it_is(net) is not net:
        raise ValueError(
            f"model.net is a {type(net).__name__} whose modules have changed since the sampler was "
            "made (hooks, processors, other modules); make another sampler"
        )


@dataclass(frozen=True, eq=False)
class Setup:
    """What stays as it is when a sampler's course is `replaced`.

    Args:
        net: the network of that dtype; the model's own where that is its dtype.
        settings: shape and dtype of all runs.
        device: where they run.
        compiled: what compiles the programs of the network, or None.
    """

    model: Model
    net: Any
    settings: Settings
    device: torch.device
    compiled: Compiled | None = None

    def choose(self, layers: Layers) -> tuple[str, ...]:
        """The names of the network's layers that a guidance names."""
        if is_staged(self.net):
            return choose_layers(layers, self.net)
        return no_layers(layers, getattr(self.net, "why_not_staged", None))


def set_up(
    model: Model,
    shape: Sequence[int] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    compile: bool | Mapping[str, Any] = False,
) -> Setup:
    """See `fastguide.Sampler` for the arguments and what is raised."""
    if not isinstance(model, Model):
        raise TypeError(f"model is a {type(model).__name__}, but it should be a fastguide.Model")
    now = _as_it_is(model.net)
    model = model if now is model.net else replace(model, net=now)
    sides, where = check_shape(model, shape), device_of(model, device)
    net, number = net_as(model, dtype)
    if not isinstance(compile, (bool, Mapping)):
        raise TypeError(
            f"compile is {shown(compile)}, but it should be True, False or options of torch.compile"
        )
    options = {} if isinstance(compile, bool) else compile
    compiled = None if compile is False else Compiled(options)
    return Setup(model, net, Settings(sides, number, model.outputs), where, compiled)
