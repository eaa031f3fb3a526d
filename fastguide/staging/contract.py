"""The contract of a network whose layers guidance can reach: stages on one batch-first state.

A network has `stages`, which run in order, and `middle`, the names that "mid" stands for:

    state = (x, t)
    for stage in net.stages:
        state = stage.run(state, cond, routing)
    prediction = state

A network may have `embed_times`, what it makes of times alone: `t [n]` to `[n, ...]`. It is asked
for all evaluations of a run at once, and the state begins with rows of that in place of t.

A network without stages may say `why_not_staged`, for errors. One whose work is a sequence of child
modules needs none of its own: `fastguide.staging.modules` makes one stage of it.

An adapter of another library's network may have `as_it_is()`, which a sampler asks when it is made:
the adapter itself, or another where something was put on the network's modules since.

A state is a pytree of tensors whose first dimension is the rows; other leaves are shared by all
rows. Rows come in blocks of B, one block a branch. Stages never write to their input, so that the
engine can keep a state and go on from it twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from fastguide.common.checks import did_you_mean
from fastguide.staging.perturbation import Layers, Perturbation, TimedLayers

if TYPE_CHECKING:
    from fastguide.staging.kept import Kept

TIME = "time"  # the layer that is the time embedding


class Segment(NamedTuple):
    """Neighbouring blocks of rows that a layer treats alike.

    Args:
        start, stop: the blocks.
        how: what is done to the layer, or None.
        against: the block whose attention output NAG leads these away from, or None.
    """

    start: int
    stop: int
    how: Perturbation | None = None
    against: int | None = None


@dataclass(frozen=True)
class Normalized:
    """Settings of NAG inside a layer; `scale` is a tensor `[B]` or `[1]`, 1 is off. Where queries
    are `shared` the negative's are the positive's; `alone` says that its rows are for that only.
    """

    scale: Tensor
    tau: float
    alpha: float
    shared: bool = False
    alone: bool = True


@dataclass(frozen=True)
class Routing:
    """Which rows a layer treats differently: static for one pattern of branches.

    Args:
        segments: for each layer that treats some rows differently, all its rows in order.
        seeds: int64 `[B]`, fresh at each evaluation, for what a layer draws.
        time: sigma / (alpha + sigma), one or B of them, for what is done to the time embedding.
        nag: the settings for segments with `against`.
        observe: for a layer, the blocks of rows whose attention's column sums are wanted, and the
            keys under which the layer leaves them in `observed`. Such a layer has segments, too.
        observed: fp32 `[B, N]`, and the layer's grid.
        keep: of a stage that rows can enter within: where it leaves what they go on from.
        resume: what was kept, and the blocks that the rows are there.
    """

    segments: Mapping[str, tuple[Segment, ...]] = field(default_factory=dict)
    seeds: Tensor | None = None
    time: Tensor | None = None
    nag: Normalized | None = None
    observe: Mapping[str, tuple[tuple[int, Hashable], ...]] = field(default_factory=dict)
    observed: dict[Hashable, tuple[Tensor, tuple[int, int]]] = field(default_factory=dict)
    keep: Kept | None = None
    resume: tuple[Kept, tuple[int, ...]] | None = None

    def changed(
        self, x: Tensor, layer: str, kind: type, change: Callable[[Tensor, Segment], Tensor]
    ) -> Tensor:
        """`x` `[rows, ...]` with `change(rows, segment)` for the rows where `layer` is treated by a
        `kind` of perturbation; x itself where there are none.
        """
        segments = self.segments.get(layer, ())
        if not any(isinstance(segment.how, kind) for segment in segments):
            return x
        parts = []
        for segment, rows in zip(segments, split(x, segments), strict=True):
            parts.append(change(rows, segment) if isinstance(segment.how, kind) else rows)
        return torch.cat(parts)


def split(x: Tensor, segments: Sequence[Segment]) -> list[Tensor]:
    """The rows of each segment, views."""
    unit = x.shape[0] // segments[-1].stop
    return [x[segment.start * unit : segment.stop * unit] for segment in segments]


PLAIN = Routing()


class Stage(NamedTuple):
    """One stage.

    Args:
        name: for errors and profiles.
        run: `(state, cond, routing) -> state`; the last stage returns the prediction.
        layers: the layers within that guidance can reach, in order. A stage that is one layer from
            state to state, residual connection and all, can be skipped as a whole.
        cond: whether the stage reads the condition (or what the time does to it). Stages before the
            first that does run once for all conditions.
        timed: whether its layers obey `NoisyTime`. A layer called "time" stands for the embedding
            that the whole network reads; "all" does not include it.
        skippable: whether leaving the stage out leaves a state that the next stage takes.
        tokens: whether its layers obey what is done to attention and tokens: all but `NoisyTime`.
        learn: `(x, t, cond)`, of a stage that is a whole network by its modules: look at it once
            for inputs like these. Rows can enter such a stage at a layer, from what it kept of
            others, and it leaves out layers by itself.
    """

    name: str
    run: Callable[[Any, Any, Routing], Any]
    layers: tuple[str, ...] = ()
    cond: bool = False
    timed: bool = False
    skippable: bool = False
    tokens: bool = True
    learn: Callable[[Tensor, Tensor, Any], object] | None = None

    @property
    def enters(self) -> bool:
        """Whether rows can enter the stage at a layer."""
        return self.learn is not None


@runtime_checkable
class Staged(Protocol):
    """A network in stages."""

    @property
    def stages(self) -> Sequence[Stage]: ...

    @property
    def middle(self) -> tuple[str, ...]: ...


def is_staged(net: Any) -> bool:
    """Whether `net` is run stage by stage: not where `torch.compile` made one piece of it."""
    return isinstance(net, Staged) and not is_compiled(net)


def embed_times(net: Any) -> Callable[[Tensor], Tensor] | None:
    """What a network in stages makes of times alone, where it says."""
    return getattr(net, "embed_times", None) if is_staged(net) else None


def is_compiled(net: Any) -> bool:
    """Whether `torch.compile` made one piece of the module."""
    dynamo = sys.modules.get("torch._dynamo")  # loaded by whoever compiled something; it is heavy
    whole = getattr(dynamo, "OptimizedModule", None)  # None while another thread imports it
    return whole is not None and isinstance(net, whole)


def uncompiled() -> AbstractContextManager[Any]:
    """Within it nothing that `torch.compile` made is compiled or used; its plain form runs."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


def run_stages(net: Staged, x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """All stages in order, nothing perturbed: what `net(x, t, cond)` is."""
    state: Any = (x, t)
    for stage in net.stages:
        state = stage.run(state, cond, PLAIN)
    return state


def layers_of(net: Staged, timed: bool = False) -> tuple[str, ...]:
    """The layers of attention and tokens, or those that read the time embedding, in order."""
    stages = [stage for stage in net.stages if (stage.timed if timed else stage.tokens)]
    return tuple(name for stage in stages for name in stage.layers if name != TIME)


def choose_layers(layers: Layers, net: Staged) -> tuple[str, ...]:
    """The names that `layers` selects, in the network's order, each once; of the layers that read
    the time embedding where they are `TimedLayers`.

    Raises:
        ValueError: an unknown or ambiguous name, or an index that is out of range.
    """
    timed = isinstance(layers, TimedLayers)
    names = layers_of(net, timed)
    keywords = "'mid', 'all', 'time'" if timed else "'mid', 'all'"
    wanted: set[str] = set()
    for layer in layers:
        if layer == TIME and any(TIME in stage.layers for stage in net.stages):
            wanted.add(TIME)
        elif layer == "mid":
            wanted.update(name for name in net.middle if name in names)
        elif layer == "all":
            wanted.update(names)
        elif isinstance(layer, int):
            if not 0 <= layer < len(names):
                raise ValueError(
                    f"layers has {layer}, but the network has {len(names)} layers: "
                    f"{', '.join(names)}"
                )
            wanted.add(names[layer])
        elif layer in names:
            wanted.add(layer)
        else:
            similar = [name for name in names if name.startswith(layer)] if layer else []
            problem = f"{len(similar)} layers start with that" if similar else "there is none"
            raise ValueError(
                f"layers has {layer!r}, but {problem}; the names are {keywords}, {', '.join(names)}"
                f"{did_you_mean(layer, ('mid', 'all', *names))}"
            )
    return tuple(name for name in (TIME, *names) if name in wanted)
