"""What all adapted networks share: a diffusers network, held by reference, in our contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from fastguide.staging.contract import Routing, Stage, layers_of, run_stages

Block = TypeVar("Block")


class Call(NamedTuple):
    """What a pipeline gave its network.

    Args:
        x: the input.
        fixed: conditions that stay for a run, a pytree of batch-first tensors.
        varying: conditions that are new at each step, likewise.
    """

    x: Tensor
    fixed: Any
    varying: dict[str, Any]


class NotUnderstood(ValueError):
    """A pipeline's call of its network that stages do not have; the network itself does."""


class Adapted(nn.Module):
    """A network `net(x, t, cond)` whose modules are those of the diffusers network `net`.

    Args:
        time_scale: what our t is multiplied with: 1000 where ours is a flow's time in [0, 1].
    """

    reads: frozenset[str] = frozenset()  # arguments of the diffusers forward that are understood
    changes: frozenset[str] = frozenset()  # those among them that are new at each step

    def __init__(self, net: Any, time_scale: float = 1.0) -> None:
        super().__init__()
        self.net = net
        self.time_scale = time_scale
        self.made_from: Any = None  # of `networks.made`
        self.channels = int(net.config.in_channels)
        self.arguments = tuple(inspect.signature(type(net).forward).parameters)[1:]

    @property
    def embedders(self) -> tuple[nn.Module, ...]:
        """The modules that `of_times` runs."""
        raise NotImplementedError

    def of_times(self, t: Tensor) -> Tensor:
        """What the network makes of times `[n]` alone, `[n, ...]`."""
        raise NotImplementedError

    def embed_times(self, t: Tensor) -> Tensor:
        """`of_times` of a run's times: at once where that is as each by itself, which it is not
        where activations are quantised by the largest.
        """
        if all(_in_rows(m) for embedder in self.embedders for m in embedder.modules()):
            return self.of_times(t)
        return torch.cat([self.of_times(one) for one in t.split(1)])

    def embedded(self, t: Tensor) -> Tensor:
        """`of_times` of a state's second part, which may be that already."""
        return self.of_times(t) if t.ndim == 1 else t

    @property
    def stages(self) -> tuple[Stage, ...]:
        raise NotImplementedError

    @property
    def middle(self) -> tuple[str, ...]:
        """The layer halfway."""
        names = layers_of(self)
        return (names[len(names) // 2],)

    @property
    def null(self) -> Any:
        """The number of classes where `cond` is one; None where nothing can be drawn for it."""
        return {}

    @property
    def outputs(self) -> int:
        """How many times the channels of x the network returns: 2 with a learned variance."""
        config = self.net.config
        made = config.out_channels or config.in_channels
        return 2 if made == 2 * config.in_channels else 1

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The plain prediction."""
        return run_stages(self, x, t, cond)

    def as_it_is(self) -> Any:
        """This, or another of the same network as its modules are now."""
        from fastguide.adapters.diffusers.networks import as_it_is

        return as_it_is(self)

    def prepare(self, cond: Any) -> Any:
        """`cond` with what depends on it alone worked out; stages take it with and without."""
        return cond

    def pack(self, x: Tensor) -> Tensor:
        """Latents `[rows, C, H, W]` as the family's pipelines have them."""
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """The inverse, for a pipeline's call that was understood before."""
        return x

    def place(self, given: dict[str, Any]) -> None:
        """Note how the latents of a pipeline's call lie."""

    def gather(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """What a pipeline's call of the network means.

        Raises:
            NotUnderstood: an argument that stages do not have.
        """
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        x = given.pop(self.arguments[0])
        for name in ("timestep", "return_dict"):
            given.pop(name, None)
        found = {name: value for name, value in given.items() if _is_given(value)}
        for name in found:
            if name not in self.reads:
                raise NotUnderstood(f"the pipeline gives it the argument {name!r}")
        varying = {name: value for name, value in found.items() if name in self.changes}
        fixed = {name: value for name, value in found.items() if name not in self.changes}
        return self.conditions(x, fixed, varying)

    def conditions(self, x: Tensor, fixed: dict[str, Any], varying: dict[str, Any]) -> Call:
        """The arguments as `cond` has them."""
        return Call(x, fixed or None, varying)


def is_plain(module: object) -> bool:
    """Whether it is a linear layer with ordinary weights."""
    return type(module) is nn.Linear and type(module.weight) in (nn.Parameter, Tensor)


def _in_rows(module: nn.Module) -> bool:
    """Whether a part of an embedder is known to treat each row by itself."""
    holds_nothing = not module.state_dict()
    return is_plain(module) or holds_nothing or next(module.children(), None) is not None


def block_stages(
    name: str,
    blocks: Iterable[Block],
    run: Callable[[Block, str, Any, Any, Routing], Any],
    cond: bool = False,
    timed: bool = False,
) -> list[Stage]:
    """A stage and layer `name.i` for each block: `run(block, name.i, state, cond, routing)`."""
    stages = []
    for i, block in enumerate(blocks):
        layer = f"{name}.{i}"
        stages.append(Stage(layer, partial(run, block, layer), (layer,), cond, timed, True))
    return stages


def _is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, (dict, list, tuple)) and not value)


def class_name(module: object) -> str:
    """The name of a module's class in diffusers, or of the first of its bases there."""
    for base in type(module).__mro__:
        if base.__module__.startswith("diffusers."):
            return base.__name__
    return type(module).__name__


def patches_to_pixels(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """`[rows, h w, patch patch C]` to `[rows, C, h patch, w patch]`."""
    pixels = tokens.unflatten(-1, (patch, patch, -1)).unflatten(1, grid)
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def dtype_of(net: nn.Module) -> torch.dtype:
    """The floating-point type that the network computes in."""
    return _dtype_of(net) or torch.float32


def _dtype_of(module: nn.Module) -> torch.dtype | None:
    # a walk of our own, because each evaluation asks: parameters() takes four times as long
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            return parameter.dtype
    found = (_dtype_of(child) for child in module._modules.values() if child is not None)
    return next((dtype for dtype in found if dtype is not None), None)
