"""Runs a program: the stages of a network on its batches of rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from fastguide.engine.program import Program, Step
from fastguide.guidance.base import Branch, Condition
from fastguide.staging.conditions import joined, narrowed, rows_of
from fastguide.staging.contract import PLAIN, Normalized, Routing
from fastguide.staging.kept import Kept

Observed = dict[Hashable, tuple[Tensor, tuple[int, int]]]


@dataclass(frozen=True)
class Context:
    """What layers may need beside their rows (see `fastguide.staging.contract.Routing`), and how
    far a `moved` row's input is moved.
    """

    seeds: Tensor | None = None
    time: Tensor | None = None
    nag: Normalized | None = None
    move: Tensor | None = None
    observed: Observed = field(default_factory=dict)


def bind(program: Program, conditions: Mapping[Condition, Any]) -> list[dict[int, Any]]:
    """For each batch the network's `cond` for its first n blocks, for each n that it runs with."""
    bound = []
    for batch in program.batches:
        whole = _joined([conditions[block.cond] for block in batch.rows])
        counts = {step.blocks for step in batch.steps}
        bound.append({n: _first(whole, n, len(batch.rows)) for n in counts})
    return bound


def run_program(
    program: Program,
    x: Tensor,
    t: Tensor,
    conds: list[dict[int, Any]],
    batch: int,
    shape: tuple[int, ...],
    context: Context,
    differentiate: Callable[[Tensor, Tensor], None] | None = None,
) -> dict[Branch, Tensor]:
    """One pass: the network's output `[B, *shape]` for each block of rows, views.

    Args:
        x: `[inputs B, *shape]`.
        t: what rows have for a time, `[1, ...]`, or `[B, ...]` where samples have their own:
            numbers, or what the network made of them.
        conds: of `bind`.
        batch: B.
        differentiate: of a program with a graph: given x `[B, *shape]` and the positive rows'
            output, with its graph, before other batches run.

    Raises:
        ValueError: the network returns something else.
    """
    saved: dict[tuple[int, int], Any] = {}
    outputs: dict[Branch, Tensor] = {}
    within: dict[int, Kept] = {}
    for number, part in enumerate(program.batches):
        graph = program.graph and number == 0
        leaf = x[:batch].detach().requires_grad_() if graph else x
        with torch.enable_grad() if graph else nullcontext():
            keep, resume = None, None
            if part.steps[0].cuts:
                keep = within[number] = Kept(part.steps[0].cuts, len(part.rows))
            if part.source is not None and part.steps[0].resumes is not None:
                resume = (within[part.source], part.steps[0].resumes)
            state: Any = None
            if part.source is None or resume is not None:
                given = leaf
                copies = x.shape[0] // batch if resume is None else len(part.rows)
                if given.shape[0] != copies * batch:
                    given = given[:batch].repeat(copies, *[1] * (x.ndim - 1))
                given = _moved(given, part.rows, batch, context.move)
                state = (given, _each_row(t, given.shape[0]))
            else:
                state = saved[part.source, part.start]
            for index, step in enumerate(part.steps, part.start):
                if step.forks:
                    state = _forked(state, step.forks, batch)
                if step.saved:
                    saved[number, index] = tree_map(_detached, state) if graph else state
                again = graph and program.checkpoint
                cond = conds[number][step.blocks]
                state = _run(step, state, cond, batch, context, again, keep, resume)
        _check(state, (len(part.rows) * batch, *shape), x.device)
        if graph:
            assert differentiate is not None
            with torch.enable_grad():
                differentiate(leaf, state[:batch])
            state = state.detach()
        outputs.update(zip(part.rows, state.chunk(len(part.rows)), strict=True))
    return outputs


def _each_row(t: Tensor, rows: int) -> Tensor:
    """Times `[1, ...]` or `[B, ...]` for all rows."""
    if t.shape[0] == 1:
        return t.expand(rows, *t.shape[1:])
    return t.repeat(rows // t.shape[0], *[1] * (t.ndim - 1))


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _moved(x: Tensor, rows: tuple[Branch, ...], batch: int, move: Tensor | None) -> Tensor:
    """`x` with the blocks of the rows that are `moved` moved."""
    if move is None:
        return x
    blocks = zip(rows, x.split(batch), strict=False)
    return torch.cat([(b + move).to(b.dtype) if row.moved else b for row, b in blocks])


def _run(
    step: Step,
    state: Any,
    cond: Any,
    batch: int,
    context: Context,
    again: bool = False,
    keep: Kept | None = None,
    resume: tuple[Kept, tuple[int, ...]] | None = None,
) -> Any:
    routing = PLAIN
    if step.segments or keep is not None or resume is not None:
        routing = Routing(
            step.segments,
            context.seeds,
            context.time,
            context.nag,
            step.observe,
            context.observed,
            keep,
            resume,
        )
    if step.kept is None and again:
        return checkpoint(step.stage.run, state, cond, routing, use_reentrant=False)
    if step.kept is None:
        return step.stage.run(state, cond, routing)
    if not step.kept:
        return state
    kept, order = step.kept, _order(step.kept, step.blocks)
    inside = tree_map(lambda leaf: _take(leaf, kept, batch), state)
    inside_cond = tree_map(lambda leaf: _take(leaf, kept, batch), cond)
    after = step.stage.run(inside, inside_cond, routing)
    left_out = tuple(i for i in range(step.blocks) if i not in kept)

    def merge(old: Any, given: Any, new: Any) -> Any:
        if new is given or not isinstance(old, Tensor):
            return old
        return _take(torch.cat([new, _take(old, left_out, batch)]), order, batch)

    return tree_map(merge, state, inside, after)


def _order(kept: tuple[int, ...], blocks: int) -> tuple[int, ...]:
    """Where each block lies once the kept ones come first."""
    places = [*kept, *(i for i in range(blocks) if i not in kept)]
    return tuple(places.index(i) for i in range(blocks))


def _take(leaf: Any, blocks: tuple[int, ...], batch: int) -> Any:
    """Blocks of rows, a view where they are neighbours."""
    if rows_of(leaf) is None:
        return leaf
    if blocks == tuple(range(blocks[0], blocks[0] + len(blocks))):
        return narrowed(leaf, blocks[0] * batch, len(blocks) * batch)
    return joined(*(narrowed(leaf, i * batch, batch) for i in blocks))


def _forked(state: Any, sources: tuple[int, ...], batch: int) -> Any:
    """The state with copies of blocks behind it."""

    def longer(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.cat([leaf, *(leaf.narrow(0, i * batch, batch) for i in sources)])

    return _changed(longer, state)


def _changed(change: Callable[[Any], Any], state: Any) -> Any:
    """`tree_map` on a state, whose general form costs more than the copies where they are small:
    this is done at each evaluation. Most states are a tensor or tuples of tensors.
    """
    if isinstance(state, Tensor):
        return change(state)
    if type(state) is tuple:
        return tuple(_changed(change, part) for part in state)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(_changed(change, part) for part in state))
    return tree_map(change, state)


def _joined(conds: list[Any]) -> Any:
    if len(conds) == 1 or conds[0] is None:
        return conds[0]
    return tree_map(joined, *conds)


def _first(cond: Any, blocks: int, of: int) -> Any:
    def some(leaf: Any) -> Any:
        rows = rows_of(leaf)
        return leaf if rows is None else narrowed(leaf, 0, rows // of * blocks)

    return tree_map(some, cond)


def _check(output: Any, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(output, Tensor) or tuple(output.shape) != shape or output.device != device:
        found = (
            f"{tuple(output.shape)} on {output.device}"
            if isinstance(output, Tensor)
            else f"a {type(output).__name__}"
        )
        raise ValueError(f"net returned {found}, but it should return a tensor {shape} on {device}")
