"""What guidance does to the attention of one layer, in the rows where it does: met, not installed.

| rows | what is asked of the attention |
|---|---|
| `Identity` | an image token attends to itself, and to the text where both attend jointly |
| `BlurredQueries` | the image's queries are blurred on their grid; at infinity one query a head |
| `against` | NAG: what the image's tokens get is led away from what they get in other rows |
| `observe` | the sums of the map's columns are laid aside |

Where a network writes attention as a softmax of scores, these act on the scores, which are linear
in the queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastguide import ops
from fastguide.staging.attention import Attention, Scores
from fastguide.staging.contract import Routing, Segment
from fastguide.staging.masked import identity_with_context
from fastguide.staging.normalized import led, nag
from fastguide.staging.perturbation import BlurredQueries, Identity, Perturbation
from fastguide.staging.probe import Met

Grid = tuple[int, ...]


class Treat:
    """The attention calls of one call of a layer, in order.

    Args:
        layer: its name.
        met: what the calls are.
        segments: all rows in order, those that are treated alike together.
        grid: how an image of so many tokens lies; it raises where that is not known.
        rows: of the batch.
    """

    def __init__(
        self,
        layer: str,
        met: Sequence[Met],
        segments: Sequence[Segment],
        routing: Routing,
        grid: Callable[[int], Grid],
        rows: int,
    ) -> None:
        self.layer, self.met, self.segments = layer, met, segments
        self.routing, self.grid, self.rows = routing, grid, rows
        self.number = 0

    @property
    def unit(self) -> int:
        """The rows of one block."""
        return self.rows // self.segments[-1].stop

    @property
    def shares(self) -> bool:
        """Whether NAG leads rows here, with queries that both conditions share."""
        against = any(one.against is not None for one in self.segments)
        return against and self.routing.nag is not None and self.routing.nag.shared

    def check(self) -> None:
        """Raise ValueError unless the layer called what it calls, and guidance could act on it."""
        if self.number not in (len(self.met), self.rows * len(self.met)):
            raise ValueError(
                f"the layer {self.layer!r} attended {self.number} times, but {len(self.met)} times "
                "when the network was looked at"
            )
        if self.shares:
            if any(one.queries is not None and not one.alone for one in self.met):
                return
            raise ValueError(
                f"layers has {self.layer!r}, in which the image attends to no text, where NAG with "
                "queries='shared' has its place"
            )
        if not any(one.images for one in self.met):
            raise ValueError(
                f"layers has {self.layer!r}, in which no self-attention was met: it has none, or "
                "computes it by other means than PyTorch's attention or a softmax of a product"
            )

    def attend(self, call: Attention) -> Tensor:
        """The attention of all rows; of one row, where the layer goes through them in turn."""
        if self.rows > 1 and call.q.shape[0] == 1 and self.met:
            return self._of_row(call)
        met = self._next(call.q.shape[-2], call.k.shape[-2])
        if not met.images and not (self.shares and met.queries is not None):
            return call.plain()
        if call.q.ndim == 3:
            q, k, v = (one.unsqueeze(1) for one in (call.q, call.k, call.v))
            mask = call.mask
            mask = mask.unsqueeze(1) if mask is not None and mask.ndim == 3 else mask
            return self._by_segment(Attention(q, k, v, mask, call.causal, call.scale), met).squeeze(
                1
            )
        return self._by_segment(call, met)

    def _of_row(self, call: Attention) -> Tensor:
        if self.shares:
            raise ValueError(f"layers has {self.layer!r}, which attends one row at a time: no NAG")
        block = self.number // len(self.met) * self.segments[-1].stop // self.rows
        met = self._next(call.q.shape[-2], call.k.shape[-2])
        if not met.images or call.q.ndim != 4:
            return call.plain()
        segment = next(one for one in self.segments if one.start <= block < one.stop)
        if segment.against is not None or self._wanted(segment):
            raise ValueError(
                f"layers has {self.layer!r}, which attends one row at a time, where neither NAG "
                "nor the mask of SAG reaches"
            )
        return _mixed(call, met, segment.how, self.grid)

    def _by_segment(self, call: Attention, met: Met) -> Tensor:
        segments = self.segments
        if self.shares and not met.images:
            return self._to_text(call)
        if self.shares and not met.alone:
            call = self._with_one_image(call, met)
        parts = [call] if len(segments) == 1 else [self._part(call, one) for one in segments]
        mixed = [
            _mixed(part, met, segment.how, self.grid)
            for part, segment in zip(parts, segments, strict=True)
        ]
        for part, segment in zip(parts, segments, strict=True):
            if segment.how is None:
                self._observe(part, met, segment)
        if any(segment.against is not None for segment in segments) and not (
            self.shares and met.alone
        ):
            mixed = self._led(mixed, met)
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _to_text(self, call: Attention) -> Tensor:
        """Attention to a text alone; the led rows' queries meet the negative text, too."""
        settings = self.routing.nag
        assert settings is not None
        found = []
        for segment in self.segments:
            own = self._part(call, segment)
            z = own.plain()
            if segment.against is not None:
                blocks = segment.stop - segment.start
                other = self._part(call, Segment(segment.against, segment.against + 1))
                k, v = (one.repeat(blocks, *[1] * (one.ndim - 1)) for one in (other.k, other.v))
                mask = other.mask
                if mask is not None and mask.ndim == 4 and mask.shape[0] == self.unit:
                    mask = mask.repeat(blocks, 1, 1, 1)
                away = replace(own, k=k, v=v, mask=mask).plain()
                # each block's own queries met the negative: nothing is to be repeated any more
                ours, theirs = (one.transpose(1, 2).flatten(2) for one in (z, away))
                scale = settings.scale
                scale = scale.repeat(blocks) if scale.shape[0] > 1 else scale
                z = led(ours, theirs, 1, replace(settings, scale=scale))
                z = z.unflatten(-1, (own.q.shape[1], -1)).transpose(1, 2)
            found.append(z)
        return torch.cat(found)

    def _with_one_image(self, call: Attention, met: Met) -> Attention:
        """Joint attention in which the negative rows' image is the led rows' own."""
        assert self.routing.nag is not None
        assert met.queries is not None
        assert met.keys is not None
        pairs = [
            (block, one.against)
            for one in self.segments
            for block in range(one.start, one.stop)
            if one.against is not None
        ]
        if len(pairs) > 1 or not self.routing.nag.alone:
            raise ValueError(
                f"queries is 'shared', but the layer {self.layer!r} attends jointly, where the "
                "negative rows are led by one image: neither CFG nor perturbed copies can be "
                "beside it; use queries='own'"
            )
        self._check_rows(call.q)
        block, against = pairs[0]
        changed = []
        for x, (start, stop) in ((call.q, met.queries), (call.k, met.keys), (call.v, met.keys)):
            x = x.clone()
            ours, theirs = (slice(i * self.unit, (i + 1) * self.unit) for i in (block, against))
            x[theirs, :, start:stop] = x[ours, :, start:stop]
            changed.append(x)
        return replace(call, q=changed[0], k=changed[1], v=changed[2])

    def weigh(self, call: Scores) -> Tensor:
        """The weights of all rows, where the network multiplies them with the values itself."""
        met = self._next(*call.scores.shape[-2:])
        if not met.images and not self.shares:
            return call.softmax(call.scores)
        if any(segment.against is not None for segment in self.segments):
            raise ValueError(
                f"layers has {self.layer!r}, which multiplies its attention's weights by itself, "
                "where NAG does not reach"
            )
        if len(self.segments) == 1:
            parts = [call.scores]
        else:
            self._check_rows(call.scores)
            sizes = [self.unit * (one.stop - one.start) for one in self.segments]
            parts = list(call.scores.split(sizes))
        weights = []
        for scores, segment in zip(parts, self.segments, strict=True):
            weights.append(_weighed(scores, met, segment.how, self.grid, call.softmax))
            if segment.how is None:
                self._observe_weights(weights[-1], met, segment)
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def _next(self, queries: int, keys: int) -> Met:
        met = self.met[self.number % len(self.met)] if self.met else None
        if met is None or met.tokens != (queries, keys):
            known = [one.tokens for one in self.met]
            raise ValueError(
                f"the layer {self.layer!r} attends with {queries} queries and {keys} keys in its "
                f"call {self.number}, but the network was seen to do so with {known}"
            )
        self.number += 1
        if met.torn and met.images:
            raise ValueError(
                f"layers has {self.layer!r}, in whose attention the image's tokens do not lie "
                "together"
            )
        return met

    def _check_rows(self, x: Tensor) -> None:
        if x.shape[0] != self.rows:
            raise ValueError(
                f"the layer {self.layer!r} attends in {x.shape[0]} rows for {self.rows} of the "
                "network, which cannot be told apart; with rows='sequential' it can be guided"
            )

    def _part(self, call: Attention, segment: Segment) -> Attention:
        self._check_rows(call.q)
        some = slice(segment.start * self.unit, segment.stop * self.unit)
        mask = call.mask
        if mask is not None and mask.ndim == 4 and mask.shape[0] == self.rows:
            mask = mask[some]
        return replace(call, q=call.q[some], k=call.k[some], v=call.v[some], mask=mask)

    def _led(self, mixed: list[Tensor], met: Met) -> list[Tensor]:
        """NAG of the image's tokens."""
        assert met.queries is not None
        start, stop = met.queries
        tokens: list[Tensor | None] = [
            one[:, :, start:stop].transpose(1, 2).flatten(2) for one in mixed
        ]
        found = []
        for one, own, segment in zip(mixed, tokens, self.segments, strict=True):
            assert own is not None
            away = self._away(own, tokens, segment)
            if away is own:
                found.append(one)
                continue
            heads = away.unflatten(-1, (one.shape[1], -1)).transpose(1, 2)
            found.append(torch.cat([one[:, :, :start], heads, one[:, :, stop:]], 2))
        return found

    def _away(self, own: Tensor, tokens: list[Tensor | None], segment: Segment) -> Tensor:
        settings = self.routing.nag
        if settings is not None and settings.shared:
            settings = replace(settings, shared=False)
        return nag(own, tokens, self.segments, segment, self.unit, settings)

    def _wanted(self, segment: Segment) -> list[tuple[slice, object]]:
        """Which rows of the segment are observed, and the keys of their sums."""
        return [
            (
                slice((block - segment.start) * self.unit, (block - segment.start + 1) * self.unit),
                key,
            )
            for block, key in self.routing.observe.get(self.layer, ())
            if segment.start <= block < segment.stop
        ]

    def _observe(self, call: Attention, met: Met, segment: Segment) -> None:
        for some, key in self._wanted(segment):
            self._check_full(met, call.mask is not None or call.causal)
            self._check_rows_of(call.q, segment)
            q, k = call.q[some], call.k[some]
            if k.shape[1] != q.shape[1]:
                k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
            self._lay_aside(key, ops.attention_colsum(q, k, call.scale))

    def _observe_weights(self, weights: Tensor, met: Met, segment: Segment) -> None:
        for some, key in self._wanted(segment):
            self._check_full(met, False)
            unit = some.stop - some.start
            blocks = segment.stop - segment.start
            each = weights.unflatten(0, (unit * blocks, -1))[some].float()
            sums = each.sum(-2).flatten(1, -2).mean(1)
            self._lay_aside(key, sums)

    def _lay_aside(self, key: object, sums: Tensor) -> None:
        grid = self.grid(sums.shape[1])
        if len(grid) != 2:
            raise ValueError(f"layers has {self.layer!r}, whose tokens lie on {grid}: no SAG mask")
        self.routing.observed[key] = (sums, (grid[0], grid[1]))

    def _check_full(self, met: Met, masked: bool) -> None:
        if not met.alone or masked:
            raise ValueError(
                f"layers has {self.layer!r}, whose attention is joint with text or masked, which "
                "makes no SAG mask"
            )

    def _check_rows_of(self, q: Tensor, segment: Segment) -> None:
        if q.shape[0] != self.unit * (segment.stop - segment.start):
            self._check_rows(q)


def _mixed(
    call: Attention, met: Met, how: Perturbation | None, grid: Callable[[int], Grid]
) -> Tensor:
    """One segment's attention `[rows, heads, N, e]`."""
    assert met.queries is not None
    start, stop = met.queries
    if isinstance(how, Identity):
        if met.alone:
            return _grouped(call, call.v)
        return identity_with_context(call, met)
    if not isinstance(how, BlurredQueries):
        return call.plain()
    image, count = call.q[:, :, start:stop], call.q.shape[2]
    if not how.flat:
        image = blurred(image, how.sigma, grid)
        q = torch.cat([call.q[:, :, :start], image, call.q[:, :, stop:]], 2)
        return replace(call, q=q).plain()
    mask = call.mask
    if call.causal or (mask is not None and mask.ndim > 1 and mask.shape[-2] != 1):
        same = image.mean(2, keepdim=True).expand_as(image)
        q = torch.cat([call.q[:, :, :start], same, call.q[:, :, stop:]], 2)
        return replace(call, q=q).plain()
    mean = image.mean(2, keepdim=True)
    q = torch.cat([call.q[:, :, :start], mean, call.q[:, :, stop:]], 2)
    z = replace(call, q=q).plain()
    if count == stop - start:
        return z.expand(-1, -1, count, -1)
    one = z[:, :, start : start + 1].expand(-1, -1, stop - start, -1)
    return torch.cat([z[:, :, :start], one, z[:, :, start + 1 :]], 2)


def _grouped(call: Attention, v: Tensor) -> Tensor:
    """Values for each head of the queries."""
    return (
        v
        if v.shape[1] == call.q.shape[1]
        else v.repeat_interleave(call.q.shape[1] // v.shape[1], 1)
    )


def blurred(q: Tensor, sigma: float | tuple[float, ...], grid: Callable[[int], Grid]) -> Tensor:
    """Queries `[rows, heads, N, d]` blurred on their grid."""
    tokens = q.transpose(1, 2).flatten(2)
    out = ops.blur(tokens, sigma, _fitting(sigma, grid(q.shape[2])))
    return out.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)


def _fitting(sigma: float | tuple[float, ...], grid: Grid) -> Grid:
    """The grid, where it has the axes that sigma is of."""
    if isinstance(sigma, tuple) and len(sigma) != len(grid):
        raise ValueError(f"sigma is {sigma}, of {len(sigma)} axes, but the tokens lie on {grid}")
    return grid


def _weighed(
    scores: Tensor,
    met: Met,
    how: Perturbation | None,
    grid: Callable[[int], Grid],
    softmax: Callable[[Tensor], Tensor],
) -> Tensor:
    """One segment's weights `[..., N, M]`."""
    assert met.queries is not None
    assert met.keys is not None
    (start, stop), (first, last) = met.queries, met.keys
    if isinstance(how, Identity):
        others = ~torch.eye(stop - start, dtype=torch.bool, device=scores.device)
        scores = scores.clone()
        block = scores[..., start:stop, first:last]
        block.masked_fill_(others, -math.inf)
    elif isinstance(how, BlurredQueries):
        image = scores[..., start:stop, :]
        if how.flat:
            image = image.mean(-2, keepdim=True).expand_as(image)
        else:
            flat = image.flatten(0, -3) if image.ndim > 3 else image
            lie = _fitting(how.sigma, grid(stop - start))
            image = ops.blur(flat, how.sigma, lie).view_as(image)
        scores = torch.cat([scores[..., :start, :], image, scores[..., stop:, :]], -2)
    return softmax(scores)
