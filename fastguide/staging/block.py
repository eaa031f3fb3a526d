"""One call of a block whose rows are not all treated alike: left out, permuted, at another time, or
with another attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fastguide.staging.attention import Meet
from fastguide.staging.backends import native
from fastguide.staging.contract import Routing, Segment
from fastguide.staging.kept import take
from fastguide.staging.layers import Layer
from fastguide.staging.perturbation import (
    BlurredQueries,
    Identity,
    NoisyTime,
    Perturbation,
    Shuffled,
    Skipped,
)
from fastguide.staging.probe import Call, Leaf
from fastguide.staging.shuffled import shuffled
from fastguide.staging.timed import timed
from fastguide.staging.treat import Grid, Treat
from fastguide.staging.twin import answering, replaced

ATTENTION = (Identity, BlurredQueries)


def run_block(
    block: nn.Module,
    layers: Sequence[Layer],
    call: Call,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    routing: Routing,
    grid: Callable[[int], Grid],
    rows: int,
) -> Any:
    """What the block returns where `routing` treats some of its `layers` differently.

    Args:
        call: what is known of this call of it.
        rows: of the batch.

    Raises:
        ValueError: what is asked for cannot be done to this block.
    """
    here = [layer for layer in layers if layer.name in routing.segments]
    for layer in here:
        skipped = _skipped(routing.segments[layer.name])
        if skipped and not layer.part:
            return _without(block, layers, call, args, kwargs, routing, grid, rows, layer, skipped)
    leaves, spec = tree_flatten((args, kwargs))
    for layer in here:
        leaves = _permuted(layer.name, leaves, call, routing, rows)
        leaves = _at_other_times(layer.name, leaves, call, routing, rows)
    args, kwargs = tree_unflatten(leaves, spec)
    whole = [layer for layer in here if not layer.part]
    changes = {layer.part: _part(layer, call, routing, grid, rows) for layer in here if layer.part}
    plain = native(block)
    plain = replaced(plain, changes) if changes else plain
    if not whole:
        return plain(*args, **kwargs)
    return _meeting(whole[0], call, routing, grid, rows, plain, args, kwargs)


def _meeting(
    layer: Layer,
    call: Call,
    routing: Routing,
    grid: Callable[[int], Grid],
    rows: int,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The module, its attention met where the layer's is changed or looked at."""
    segments = routing.segments[layer.name]
    meets = layer.name in routing.observe or any(
        isinstance(one.how, ATTENTION) or one.against is not None for one in segments
    )
    if not meets:
        return module(*args, **kwargs)
    treat = Treat(layer.name, call.inner.get(layer.part, ()), segments, routing, grid, rows)
    with Meet(treat.attend, treat.weigh):
        out = module(*args, **kwargs)
    treat.check()
    return out


def _part(
    layer: Layer, call: Call, routing: Routing, grid: Callable[[int], Grid], rows: int
) -> Callable[[Any], nn.Module]:
    """Makes the stand-in of a layer that is part of a block."""

    def make(module: nn.Module) -> nn.Module:
        def answer(*args: Any, **kwargs: Any) -> Any:
            segments = routing.segments[layer.name]
            out = None
            if not all(isinstance(one.how, Skipped) for one in segments):
                out = _meeting(layer, call, routing, grid, rows, module, args, kwargs)
            if not _skipped(segments):
                return out
            like = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(like, Tensor) or not (out is None or isinstance(out, Tensor)):
                raise ValueError(f"layers has {layer.name!r}, which guidance cannot leave out")
            if out is None:
                return torch.zeros_like(like)
            unit = out.shape[0] // segments[-1].stop
            parts = [
                torch.zeros_like(part) if isinstance(one.how, Skipped) else part
                for one, part in zip(
                    segments, out.split([unit * (s.stop - s.start) for s in segments]), strict=True
                )
            ]
            return torch.cat(parts)

        return answering(module, answer)

    return make


def _skipped(segments: Sequence[Segment]) -> tuple[int, ...]:
    """The blocks of rows that leave the layer out."""
    return tuple(
        block
        for one in segments
        if isinstance(one.how, Skipped)
        for block in range(one.start, one.stop)
    )


def _without(
    block: nn.Module,
    layers: Sequence[Layer],
    call: Call,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    routing: Routing,
    grid: Callable[[int], Grid],
    rows: int,
    layer: Layer,
    skipped: tuple[int, ...],
) -> Any:
    """The block's inputs for the rows that leave it out, its outputs for the others."""
    leaves = tree_flatten((args, kwargs))[0]
    places = [_input_of(one, call.given, layer.name) for one in call.returned]
    count = routing.segments[layer.name][-1].stop
    left = tuple(i for i in range(count) if i not in skipped)
    if not left:
        given = [None if place is None else leaves[place] for place in places]
        assert call.structure is not None
        return tree_unflatten(given, call.structure)

    def some(leaf: Any) -> Any:
        in_rows = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == rows
        return take(leaf, left, count) if in_rows else leaf

    inner_args, inner_kwargs = tree_map(some, args), tree_map(some, kwargs)
    segments = {
        one.name: _among(routing.segments[one.name], left)
        for one in layers
        if one.name in routing.segments
    }
    inner = replace(routing, segments=segments, observe=_observed(routing, layers, left))
    kept = rows // count * len(left)
    out = run_block(block, layers, call, inner_args, inner_kwargs, inner, grid, kept)
    found, spec = tree_flatten(out)
    order = [*left, *skipped]
    back = tuple(order.index(i) for i in range(count))
    merged = []
    for new, place in zip(found, places, strict=True):
        if place is None:
            merged.append(new)
            continue
        old = leaves[place]
        if old.shape[0] != rows or new.shape[0] != kept:
            raise ValueError(
                f"layers has {layer.name!r}, which returns {tuple(new.shape)} for {kept} rows, "
                "which cannot be told apart; with rows='sequential' it can be left out"
            )
        merged.append(take(torch.cat([new, take(old, skipped, count)]), back, count))
    return tree_unflatten(merged, spec)


def _among(segments: Sequence[Segment], left: tuple[int, ...]) -> tuple[Segment, ...]:
    """The segments, counted among the blocks that are left."""
    found: list[Segment] = []
    for number, block in enumerate(left):
        one = next(s for s in segments if s.start <= block < s.stop)
        against = None if one.against is None else left.index(one.against)
        if found and found[-1][2:] == (one.how, against):
            found[-1] = found[-1]._replace(stop=number + 1)
        else:
            found.append(Segment(number, number + 1, one.how, against))
    return tuple(found)


def _observed(routing: Routing, layers: Sequence[Layer], left: tuple[int, ...]) -> Any:
    return {
        one.name: tuple((left.index(b), key) for b, key in routing.observe[one.name] if b in left)
        for one in layers
        if one.name in routing.observe
    }


def _input_of(out: Leaf | None, given: Sequence[Leaf | None], layer: str) -> int | None:
    """Which input the block returns changed: the one of the same shape, with the image in the same
    place.
    """
    if out is None:
        return None
    same = [
        i
        for i, one in enumerate(given)
        if one is not None and (one.shape, one.image) == (out.shape, out.image)
    ]
    if len(same) != 1:
        raise ValueError(
            f"layers has {layer!r}, which this network cannot leave out: {len(same)} of its inputs "
            f"are as what it returns, {out.shape}"
        )
    return same[0]


def _changes(segments: Sequence[Segment], kind: type[Perturbation]) -> bool:
    return any(isinstance(one.how, kind) for one in segments)


def _permuted(layer: str, leaves: list[Any], call: Call, routing: Routing, rows: int) -> list[Any]:
    """The inputs with the image's tokens permuted where `layer` is shuffled."""
    if not _changes(routing.segments[layer], Shuffled):
        return leaves
    where = [i for i, one in enumerate(call.given) if one is not None and one.image is not None]
    if len(where) != 1 or leaves[where[0]].shape[0] != rows or leaves[where[0]].ndim < 3:
        raise ValueError(
            f"layers has {layer!r}, whose tokens cannot be permuted: {len(where)} of its inputs "
            "hold the image, and it should be one, with rows first"
        )
    x, told = leaves[where[0]], call.given[where[0]]
    assert told is not None
    assert told.image is not None
    start, stop = told.image
    if x.ndim == 3:
        parts = [x[:, :start], shuffled(x[:, start:stop], layer, routing), x[:, stop:]]
        mixed = torch.cat(parts, 1)
    else:
        tokens = shuffled(x.flatten(2).transpose(1, 2), layer, routing)
        mixed = tokens.transpose(1, 2).reshape(x.shape)
    return [mixed if i == where[0] else leaf for i, leaf in enumerate(leaves)]


def _at_other_times(
    layer: str, leaves: list[Any], call: Call, routing: Routing, rows: int
) -> list[Any]:
    """The inputs with the time's embedding perturbed where `layer` is so."""
    if not _changes(routing.segments[layer], NoisyTime):
        return leaves
    where = [i for i, one in enumerate(call.given) if one is not None and one.time]
    if len(where) != 1 or leaves[where[0]].shape[0] != rows:
        raise ValueError(
            f"layers has {layer!r}, which reads {len(where)} embeddings of the time, and it should "
            "be one, with rows first"
        )
    changed = timed(leaves[where[0]], layer, routing)
    return [changed if i == where[0] else leaf for i, leaf in enumerate(leaves)]
