"""Staging by modules: a network whose work is a sequence of child blocks, guided in its layers with
no code about it.

The clean rows run the network's own forward once, and what its blocks returned is kept as far as
it is needed. A perturbed branch runs that forward again, in which the blocks before its first
perturbed one return what was kept. Within a perturbed layer the attention call itself is met.
Hooks, LoRA, offloading and quantised layers work, because the modules run as they are. All this
happens in twins of the modules that live for one call: nothing is installed, so other threads see
nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from fastguide.staging.block import run_block
from fastguide.staging.conditions import Ragged, longest
from fastguide.staging.contract import PLAIN, TIME, Routing, Stage
from fastguide.staging.grid import grid_of
from fastguide.staging.layers import Layer, find_layers, submodules
from fastguide.staging.probe import Calls, one_sample, probe
from fastguide.staging.timed import timed
from fastguide.staging.twin import answering, replaced

Grid = Callable[[int, tuple[int, ...]], tuple[int, ...]]
KEPT_PROBES = 16  # of other shapes


class Modules:
    """A network by its modules, as one stage that a branch can enter at any layer.

    Args:
        net: `net(x, t, cond)`.
        layers, parts: as in `fastguide.staging.layers.find_layers`.
        units: further submodules, named as `layers` are, that run between the layers' blocks and
            that a branch does not run again either.
        prefix: the path of the network within `net`, which the layers' names leave out.
        middle: the layers that "mid" stands for; by default the one halfway.
        time: the path of the submodule that embeds the time; its first output is perturbed for the
            layer "time".
        grid: `(tokens, shape of one sample)` to how the tokens lie.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: str | Sequence[str] = "auto",
        parts: Sequence[str] = (),
        units: Sequence[str] = (),
        prefix: str = "",
        middle: Sequence[str] = (),
        time: str | None = None,
        grid: Grid = grid_of,
    ) -> None:
        self.net, self.grid = net, grid
        self._prefix = f"{prefix}." if prefix else ""
        inner = net.get_submodule(prefix)
        self.layers = find_layers(inner, layers, parts)
        self.names = tuple(layer.name for layer in self.layers)
        unknown = [name for name in middle if name not in self.names]
        if unknown:
            raise ValueError(f"middle has {unknown[0]!r}, but the layers are {self.names}")
        self.middle = tuple(middle) or (self.names[len(self.names) // 2],)
        if time is not None:
            inner.get_submodule(time)
        self.time = time
        self._of_block: dict[str, list[Layer]] = {}
        for layer in self.layers:
            self._of_block.setdefault(layer.block, []).append(layer)
        for path in submodules(inner, units):
            self._of_block.setdefault(path, [])
        nested = [(a, b) for a in self._of_block for b in self._of_block if b.startswith(f"{a}.")]
        if nested:
            raise ValueError(
                f"layers has {nested[0][0]!r} and {nested[0][1]!r}, which is within it"
            )
        self._known: dict[Hashable, Calls] = {}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One, which is the network."""
        names = self.names if self.time is None else (TIME, *self.names)
        return (Stage("network", self.run, names, cond=True, timed=True, learn=self.learn),)

    def run(self, state: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN) -> Any:
        """The network on x `[rows, *shape]`, t `[rows]` and cond, as `routing` has it."""
        x, t = state
        if not routing.segments and routing.keep is None and routing.resume is None:
            return self.net(x, t, cond)
        return _Forward(self, x, self.learn(x, t, cond), routing)(x, t, cond)

    def learn(self, x: Tensor, t: Tensor, cond: Any) -> Calls:
        """What the network's blocks do, found by running it where that is not known yet for these
        shapes and modules. It waits for the device, so that it comes before a run.
        """
        key = (_shapes((x, cond)), self._form())
        if key not in self._known:
            paths = {self._prefix + block: block for block in self._of_block}
            parts = {
                path: tuple(layer.part for layer in self._of_block[block] if layer.part)
                for path, block in paths.items()
            }
            one = one_sample((x, t, cond))
            found = probe(self.net, tuple(paths), parts, *one)
            for old in list(self._known)[: 1 - KEPT_PROBES]:
                self._known.pop(old, None)
            self._known[key] = {(paths[path], n): call for (path, n), call in found.items()}
        return self._known[key]

    def of(self, net: nn.Module, grid: Grid) -> Modules:
        """The same of a shallow copy of the network, with what is known of its blocks."""
        found = copy.copy(self)
        found.net, found.grid = net, grid
        return found

    def _form(self) -> Hashable:
        """What tells the modules' present state from another."""
        return tuple(
            (name, type(m), type(getattr(m, "processor", None)), m.__dict__.get("forward"))
            for name, m in self.net.named_modules()
        )


class _Forward:
    """One run of the network."""

    def __init__(self, modules: Modules, x: Tensor, calls: Calls, routing: Routing) -> None:
        self.modules, self.calls, self.routing = modules, calls, routing
        self.rows, self.sample = x.shape[0], tuple(x.shape[1:])
        self.counts: dict[str, int] = {}
        self.entered = routing.resume is None
        self.treated = {layer.block for layer in modules.layers if layer.name in routing.segments}
        self.missing = set(self.treated)
        self.begins: list[int] = []
        if routing.keep is not None:
            blocks = {layer.name: layer.block for layer in modules.layers}
            for cut in routing.keep.cuts:
                mine = {blocks[name] for name in cut.layers}
                orders = [call.order for (path, _), call in calls.items() if path in mine]
                self.begins.append(min(orders, default=0))

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Any:
        modules, prefix = self.modules, self.modules._prefix
        changes: dict[str, Callable[[Any], nn.Module]] = {
            prefix + path: self._stand_in(path) for path in modules._of_block
        }
        if TIME in self.routing.segments:
            assert modules.time is not None
            changes[prefix + modules.time] = self._timed
        out = replaced(modules.net, changes)(x, t, cond)
        if self.missing:
            raise ValueError(
                f"layers has {sorted(self.missing)[0]!r}, which did not run: the network's forward "
                "does not call it as a module, or was replaced by one that holds its modules"
            )
        return out

    def _stand_in(self, path: str) -> Callable[[Any], nn.Module]:
        def make(block: nn.Module) -> nn.Module:
            return answering(block, lambda *args, **kwargs: self._call(path, block, args, kwargs))

        return make

    def _call(self, path: str, block: nn.Module, args: Any, kwargs: Any) -> Any:
        number = self.counts[path] = self.counts.get(path, 0) + 1
        number -= 1
        routing, treated = self.routing, path in self.treated
        self.entered |= treated
        self.missing.discard(path)
        if (path, number) not in self.calls:
            raise ValueError(f"the block {path!r} runs more often than when it was looked at")
        if not self.entered:
            assert routing.resume is not None
            kept, blocks = routing.resume
            return kept.answer(path, number, blocks, self.rows)
        if treated:
            layers, call = self.modules._of_block[path], self.calls[path, number]
            out = run_block(block, layers, call, args, kwargs, routing, self._grid, self.rows)
        else:
            out = block(*args, **kwargs)
        if routing.keep is not None:
            routing.keep.put(path, number, out, self.calls, self.begins, self.rows)
        return out

    def _grid(self, tokens: int) -> tuple[int, ...]:
        return self.modules.grid(tokens, self.sample)

    def _timed(self, module: nn.Module) -> nn.Module:
        def answer(*args: Any, **kwargs: Any) -> Any:
            out = module(*args, **kwargs)
            if isinstance(out, Tensor):
                return timed(out, TIME, self.routing)
            first, *others = out
            return (timed(first, TIME, self.routing), *others)

        return answering(module, answer)


class ByModules(nn.Module):
    """`net`, staged by its modules; the arguments are those of `Modules`."""

    def __init__(self, net: Any, layers: str | Sequence[str] = "auto", **options: Any) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(
                f"layers is {layers!r}, but net is a {type(net).__name__}, and only the layers of "
                "an nn.Module can be reached"
            )
        self.net = net
        self.modules_of_net = Modules(net, layers, **options)

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.modules_of_net.stages

    @property
    def middle(self) -> tuple[str, ...]:
        return self.modules_of_net.middle

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Any:
        """The plain prediction."""
        return self.net(x, t, cond)


def _shapes(tree: Any) -> Hashable:
    """The form of what a network is given, of one row."""
    leaves, spec = tree_flatten(tree)
    return (tuple(map(_shape, leaves)), str(spec))


def _shape(leaf: Any) -> Hashable:
    if isinstance(leaf, Ragged):
        return _shape(longest(leaf).unsqueeze(0))
    if not isinstance(leaf, Tensor):
        return type(leaf).__name__
    return (tuple(leaf.shape[1:]), leaf.dtype, leaf.device)
