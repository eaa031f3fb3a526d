"""What a run takes of the device's memory, found by running it on tensors without data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.run import Inputs, buffers, run
from fastguide.engine.static import NUMBERS
from fastguide.staging.contract import uncompiled


@dataclass(frozen=True)
class Memory:
    """Bytes, by an estimate.

    Args:
        weights: of all networks; they are there before a run.
        state: what lives through a run: the slots, the network's input, and for graphs copies of
            conditions and results.
        activations: the most that the evaluation of any pattern holds at once. Kernels' scratch
            space and gaps between blocks are not counted.
    """

    weights: int
    state: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.run

    @property
    def run(self) -> int:
        """What a run takes beside the weights."""
        return self.state + self.activations


class Live(TorchDispatchMode):
    """The `peak` of the bytes that what is made within it holds at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not any(one.alias_info for one in func._schema.returns):
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def estimate(
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    one: Conditions,
    batch: int,
    nets: Iterable[Any],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    outputs: int,
    graph: bool = False,
) -> Memory:
    """Of a run of `batch` samples; networks that are compiled count as if they were not.

    Args:
        one: the conditions of one sample.
        nets: all networks.
        graph: whether the run is captured.
    """
    seeds = torch.zeros(batch, dtype=torch.int64, device=plan.index.device)
    conditions = one.repeated(batch)
    short = _short(plan)
    _learn(short, passes, one, shape, dtype)
    tensors = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), uncompiled(), tensors as fake, Live() as live:
        given = Inputs(conditions.mapped(fake.from_tensor).undrawn(), fake.from_tensor(seeds))
        state = sum(one.nbytes for one in buffers(short, passes, given.seeds, shape, dtype))
        live.peak = before = live.now
        run(short, passes, given, shape, dtype, outputs)
    extra = 0
    if graph:
        extra = sum(t.nbytes for t in tree_leaves(conditions.fixed) if isinstance(t, Tensor))
        extra += 4 * batch * torch.Size(shape).numel()
    return Memory(_weights(nets), state + extra, max(live.peak - before - state, 0))


def _learn(
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    one: Conditions,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    """Have networks looked at that have to be, which takes real tensors."""
    x = torch.zeros((1, *shape), device=plan.index.device, dtype=dtype)
    for of_pattern in passes.values():
        for each in of_pattern.all:
            learn = each.program.batches[0].steps[0].stage.learn
            if learn is not None:
                learn(x, plan.times[-1:], one.fixed[each.rows[0].net]["cond"])


def largest_batch(small: Memory, large: Memory, batch: int, free: int) -> int:
    """The largest batch whose run fits into `free` bytes, by estimates for 1 and for `batch`."""
    each = (large.run - small.run) / max(batch - 1, 1) if batch > 1 else small.run
    fixed = small.run - each
    return max(int((free - fixed) / max(each, 1)), 0)


def what_fits(small: Memory, large: Memory, batch: int, free: int) -> str:
    """The error of a captured run of `batch` samples that does not fit into `free` bytes, by
    estimates for 1 and for `batch`.
    """
    fits = min(largest_batch(small, large, batch, free), batch - 1)
    advice = f"{fits} samples may fit" if fits else "not even one sample may fit"
    return (
        f"a captured run of {batch} samples does not fit: it takes about "
        f"{large.run / 2**20:.0f} MiB beside the weights, {free / 2**20:.0f} MiB are free; "
        f"by the estimate {advice}"
    )


def _short(plan: Plan) -> Plan:
    """The plan with each pattern once."""
    seen: dict[Pattern | None, int] = {None: 0}
    for e, row in enumerate(plan.rows):
        seen.setdefault(row.pattern, e)
    kept = sorted(seen.values())
    numbers = {name: getattr(plan, name)[kept] for name in (*NUMBERS, "weights", "nag")}
    numbers["index"] = plan.index[: len(kept)]
    return replace(plan, rows=tuple(plan.rows[e] for e in kept), **numbers)


def _weights(nets: Iterable[Any]) -> int:
    tensors = [
        tensor
        for net in nets
        if isinstance(net, nn.Module)
        for tensor in (*net.parameters(), *net.buffers())
    ]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())
