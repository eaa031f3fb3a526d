"""What a network's blocks do with an image, a condition and a time: found by running it.

The network runs three times on one sample, its attention kept from mixing tokens: once, once with
another x, once with another time. A token whose keys change with x is one of the image's, since
nothing else can have carried x there; the tokens that stay are text, registers or padding. So
self-attention, attention to a text and joint attention are told apart, and where the image lies in
a joint sequence is known, whatever the network calls its parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map

from fastguide.staging.attention import Attention, Meet, Scores
from fastguide.staging.backends import native
from fastguide.staging.conditions import one_row
from fastguide.staging.twin import answering, replaced

Span = tuple[int, int]
END = 1 << 30  # the number of a block after all blocks


@dataclass(frozen=True)
class Met:
    """One call of attention within a block, N queries and M keys.

    Args:
        queries, keys: where the image's tokens lie among them; None where there are none.
        torn: whether other tokens lie between them.
    """

    tokens: tuple[int, int]
    queries: Span | None
    keys: Span | None
    torn: bool = False

    @property
    def images(self) -> int:
        """How many tokens the image has, where it attends to itself; else 0."""
        if self.queries is None or self.keys is None:
            return 0
        count = self.queries[1] - self.queries[0]
        return count if count == self.keys[1] - self.keys[0] else 0

    @property
    def alone(self) -> bool:
        """Whether all tokens are the image's."""
        return self.images == self.tokens[0] == self.tokens[1]


@dataclass(frozen=True)
class Leaf:
    """One tensor that a block is given or returns.

    Args:
        shape: for one sample.
        image: where along its tokens it depends on x, or None.
        time: whether it is the time's embedding: depends on the time, and not on x, and no block
            returned it.
    """

    shape: tuple[int, ...]
    image: Span | None
    time: bool


@dataclass
class Call:
    """One call of a block.

    Args:
        order: how many blocks' calls came before.
        given, returned: what its pytrees hold; None for what is no tensor.
        inner: the attention calls by the part of the block that made them; "" has all.
        last_use: of each returned leaf, the order of the last block that was given it; END where
            the network itself reads it.
        written: whether somebody wrote into what it returned.
        structure: of what it returned.
    """

    order: int
    given: list[Leaf | None] = field(default_factory=list)
    returned: list[Leaf | None] = field(default_factory=list)
    inner: dict[str, list[Met]] = field(default_factory=dict)
    last_use: list[int] = field(default_factory=list)
    written: bool = False
    structure: TreeSpec | None = None


Calls = dict[tuple[str, int], Call]  # path, and which of its calls


@dataclass
class _Trace:
    """What one run leaves: signatures of all tensors, in order."""

    given: list[list[Any]] = field(default_factory=list)
    returned: list[list[Any]] = field(default_factory=list)
    met: list[list[tuple[str, Any, Any]]] = field(default_factory=list)  # part, of q, of k


class _Outside(TorchFunctionMode):
    """Sees which of the blocks' outputs the network itself reads, between them."""

    def __init__(self, run: _Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.run.depth == 0 and not _asks(func, out):
            for leaf in tree_flatten((args, kwargs or {}))[0]:
                self.run.read(leaf, END)
        return out


def _asks(func: Any, out: Any) -> bool:
    """Whether it is the question of a property that is no tensor: a shape, a dtype."""
    return getattr(func, "__name__", "") in ("__get__", "size", "dim") and not (
        isinstance(out, Tensor)
    )


class _Run:
    """One run of the network."""

    def __init__(self, paths: Sequence[str], parts: dict[str, tuple[str, ...]]) -> None:
        self.paths, self.parts = paths, parts
        self.trace, self.calls = _Trace(), {}  # type: tuple[_Trace, Calls]
        self.part, self.depth, self.now = "", 0, -1
        self.counts: dict[str, int] = {}
        self.owners: dict[int, tuple[Tensor, Call, int, int]] = {}

    def __call__(self, net: nn.Module, x: Tensor, t: Tensor, cond: Any) -> None:
        changes = {path: self._stand_in(path) for path in self.paths}
        unmixed = native(replaced(net, changes))
        with torch.no_grad(), _Outside(self), Meet(self._attend, self._weigh):
            unmixed(x, t, cond)
        for tensor, call, _, version in self.owners.values():
            call.written |= tensor.is_inference() or tensor._version != version

    def read(self, leaf: Any, order: int) -> None:
        owner = self.owners.get(id(leaf)) if isinstance(leaf, Tensor) else None
        if owner is not None:
            _, call, index, _ = owner
            call.last_use[index] = max(call.last_use[index], order)

    def _stand_in(self, path: str) -> Any:
        def make(block: nn.Module) -> nn.Module:
            inner = {part: self._part(part) for part in self.parts[path]}
            inside = native(replaced(block, inner) if inner else block)

            def answer(*args: Any, **kwargs: Any) -> Any:
                number = self.counts[path] = self.counts.get(path, 0) + 1
                call = Call(len(self.calls))
                self.calls[path, number - 1] = call
                leaves = tree_flatten((args, kwargs))[0]
                for leaf in leaves:
                    self.read(leaf, call.order)
                self.trace.given.append([_signature(leaf) for leaf in leaves])
                self.trace.met.append([])
                call.given = [_leaf(leaf, id(leaf) not in self.owners) for leaf in leaves]
                self.depth += 1
                try:
                    out = inside(*args, **kwargs)
                finally:
                    self.depth -= 1
                found, call.structure = tree_flatten(out)
                self.trace.returned.append([_signature(leaf) for leaf in found])
                call.returned = [_leaf(leaf) for leaf in found]
                call.last_use = [-1] * len(found)
                for index, leaf in enumerate(found):
                    if isinstance(leaf, Tensor):
                        version = 0 if leaf.is_inference() else leaf._version
                        self.owners[id(leaf)] = (leaf, call, index, version)
                return out

            return answering(block, answer)

        return make

    def _part(self, name: str) -> Any:
        def make(module: nn.Module) -> nn.Module:
            def answer(*args: Any, **kwargs: Any) -> Any:
                before, self.part = self.part, name
                try:
                    return module(*args, **kwargs)
                finally:
                    self.part = before

            return answering(module, answer)

        return make

    def _attend(self, call: Attention) -> Tensor:
        self._note(call.q, call.k)
        q, v = call.q, call.v
        if v.ndim == 4 and q.shape[1] != v.shape[1]:
            v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        if q.shape[-2] == v.shape[-2]:
            return v.clone()
        return v.new_zeros((*q.shape[:-1], v.shape[-1]))

    def _weigh(self, call: Scores) -> Tensor:
        self._note(call.q, call.k)
        n, m = call.scores.shape[-2:]
        if n != m:
            return torch.zeros_like(call.scores)
        one = torch.eye(n, dtype=call.scores.dtype, device=call.scores.device)
        return one.expand_as(call.scores).clone()

    def _note(self, q: Tensor, k: Tensor) -> None:
        if self.depth:
            found = (_tokens(q.movedim(-2, 0)), _tokens(k.movedim(-2, 0)))
            self.trace.met[-1].append((self.part, *found))


def probe(
    net: nn.Module,
    paths: Sequence[str],
    parts: dict[str, tuple[str, ...]],
    x: Tensor,
    t: Tensor,
    cond: Any,
) -> Calls:
    """What the blocks at `paths` do, one entry for each call; see the file's first lines.

    Args:
        net: `net(x, t, cond)`.
        parts: of each block, the parts of it whose attention is told apart from the others'.
        x, t, cond: of one sample; x decides shapes and dtype only.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = [
        torch.randn(x.shape, generator=generator, device="cpu").to(x.device, x.dtype)
        for _ in range(2)
    ]
    later = t * 0.75 + 0.125
    runs = [_Run(paths, parts) for _ in range(3)]
    runs[0](net, drawn[0], t, cond)
    runs[1](net, drawn[1], t, cond)
    runs[2](net, drawn[0], later, cond)
    first, moved, timed = (run.trace for run in runs)
    counts = [len(run.calls) for run in runs]
    if len(set(counts)) > 1 or any(len(run.trace.returned) != counts[0] for run in runs):
        raise ValueError(
            f"the network's blocks ran {counts} times for two images and a second time, but they "
            "should run alike for all"
        )
    ordered = sorted(runs[0].calls.values(), key=lambda call: call.order)
    for i, call in enumerate(ordered):
        call.given = _told(call.given, first.given[i], moved.given[i], timed.given[i])
        call.returned = _told(call.returned, first.returned[i], moved.returned[i], None)
        whole = []
        for (part, q, k), (_, q2, k2) in zip(first.met[i], moved.met[i], strict=True):
            torn = _torn(q, q2) or _torn(k, k2)
            met = Met((len(q), len(k)), _span(q, q2), _span(k, k2), torn)
            whole.append(met)
            if part:
                call.inner.setdefault(part, []).append(met)
        call.inner[""] = whole
    return runs[0].calls


def _told(leaves: list[Any], a: list[Any], b: list[Any], later: list[Any] | None) -> list[Any]:
    found: list[Leaf | None] = []
    for i, leaf in enumerate(leaves):
        if leaf is None:
            found.append(None)
            continue
        span = _span(a[i], b[i])
        asks = later is not None and leaf.time and span is None
        moves = later is not None and asks and _span(a[i], later[i]) is not None
        found.append(Leaf(leaf.shape, span, moves))
    return found


def _leaf(leaf: Any, time: bool = False) -> Leaf | None:
    return Leaf(tuple(leaf.shape), None, time) if isinstance(leaf, Tensor) else None


def _signature(leaf: Any) -> Tensor | None:
    """One number for each token of `[1, N, C]` or `[1, C, H, W]`, one for anything smaller."""
    if not isinstance(leaf, Tensor):
        return None
    if leaf.ndim < 3:
        return _tokens(leaf.unsqueeze(0))
    return _tokens(leaf.movedim(1, 0) if leaf.ndim == 3 else leaf.flatten(2).movedim(2, 0))


def _tokens(x: Tensor) -> Tensor:
    """`[N, ...]` to `[N]`: sums that any change of a token changes."""
    flat = x.reshape(x.shape[0], -1)
    flat = flat.double() if flat.dtype != torch.complex64 else torch.view_as_real(flat).flatten(1)
    weights = torch.arange(1, flat.shape[1] + 1, device=x.device, dtype=torch.float64).sqrt()
    return (flat.double() @ weights).nan_to_num()


def _span(a: Tensor | None, b: Tensor | None) -> Span | None:
    """From where to where two signatures differ."""
    if a is None or b is None or a.shape != b.shape:
        return None
    where = (a != b).nonzero().flatten().tolist()
    return (where[0], where[-1] + 1) if where else None


def _torn(a: Tensor, b: Tensor) -> bool:
    """Whether equal tokens lie between those that differ."""
    span = _span(a, b)
    return span is not None and int((a != b).sum()) != span[1] - span[0]


def one_sample(tree: Any) -> Any:
    """One row of every leaf that has rows."""
    return tree_map(one_row, tree)
