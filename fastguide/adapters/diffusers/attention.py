"""Attention of diffusers' modules, computed here on their projections, so that guidance can perturb
it in chosen rows; nothing is installed on the modules.

`fastguide.nets.attention` has the table of what each kind of row costs. Projections are called as
modules, whatever they are (LoRA, quantised); the one-query form reads weights and is used where
they are plain.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastguide import ops
from fastguide.adapters.diffusers.network import is_plain
from fastguide.staging.contract import Routing, Segment, split
from fastguide.staging.normalized import nag
from fastguide.staging.perturbation import BlurredQueries, Identity

Grid = tuple[int, int]
WHOLE = Segment(0, 1)
Mix = Callable[[Tensor, Segment, int], Tensor]


class Heads(NamedTuple):
    """Queries, keys and values `[rows, heads, N, d]`."""

    q: Tensor
    k: Tensor
    v: Tensor


def by_head(attn: Any, x: Tensor) -> Tensor:
    """`[rows, N, heads d]` to `[rows, heads, N, d]`, a view."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def by_token(z: Tensor) -> Tensor:
    """The inverse of `by_head`."""
    return z.transpose(1, 2).flatten(2)


def project_out(attn: Any, z: Tensor) -> Tensor:
    """The output projection."""
    return attn.to_out[1](attn.to_out[0](z))


def projected(attn: Any, x: Tensor, context: Tensor | None = None) -> Heads:
    """Normalised heads of `x`; keys and values of `context` where there is one."""
    source = x if context is None else context
    q, k, v = (by_head(attn, y) for y in (attn.to_q(x), attn.to_k(source), attn.to_v(source)))
    return Heads(_normed(attn, "norm_q", q), _normed(attn, "norm_k", k), v)


def _normed(attn: Any, norm: str, x: Tensor) -> Tensor:
    module = getattr(attn, norm, None)
    return x if module is None else module(x)


def self_attention(attn: Any, name: str, x: Tensor, grid: Grid, routing: Routing) -> Tensor:
    """Softmax self-attention with its output projection, `[rows, N, C]`; `grid` (h, w) is how the
    tokens lie.
    """
    return routed(name, x, routing, partial(_softmax, attn, name, grid, routing), attn)


def routed(name: str, x: Tensor, routing: Routing, mix: Mix, attn: Any) -> Tensor:
    """The output projection of `mix(rows, segment, unit)`, `[rows, N or 1, C]`, for each segment of
    the layer `name`; `unit` rows are a block.
    """
    segments = routing.segments.get(name)
    if segments is None:
        return project_out(attn, mix(x, WHOLE, x.shape[0]))
    unit = x.shape[0] // segments[-1].stop
    parts = zip(split(x, segments), segments, strict=True)
    mixed = [mix(rows, segment, unit) for rows, segment in parts]
    outputs = []
    for one, segment in zip(mixed, segments, strict=True):
        led = nag(one, mixed, segments, segment, unit, routing.nag)
        outputs.append(project_out(attn, led).expand(-1, x.shape[1], -1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _softmax(
    attn: Any, name: str, grid: Grid, routing: Routing, rows: Tensor, segment: Segment, unit: int
) -> Tensor:
    how = segment.how
    if isinstance(how, Identity):
        return attn.to_v(rows)
    if isinstance(how, BlurredQueries) and how.flat and _plain(attn):
        return _one_query(attn, rows)
    heads = projected(attn, rows)
    if isinstance(how, BlurredQueries):
        heads = heads._replace(q=blurred(heads.q, how, grid))
    for block, key in routing.observe.get(name, ()):
        if how is None and segment.start <= block < segment.stop:
            some = slice((block - segment.start) * unit, (block - segment.start + 1) * unit)
            sums = ops.attention_colsum(heads.q[some], heads.k[some], attn.scale)
            routing.observed[key] = (sums, grid)
    return attend(attn, heads)


def attend(attn: Any, heads: Heads, mask: Tensor | None = None) -> Tensor:
    """Softmax attention `[rows, N, C]`; `mask` is a bias `[rows, 1, 1, keys]`."""
    scale = getattr(attn, "scale", None)
    z = F.scaled_dot_product_attention(heads.q, heads.k, heads.v, attn_mask=mask, scale=scale)
    return by_token(z)


def blurred(q: Tensor, how: BlurredQueries, grid: Grid) -> Tensor:
    """Queries `[rows, heads, N, d]` blurred on their grid; `[rows, heads, 1, d]` at infinity."""
    if how.flat:
        return q.mean(2, keepdim=True)
    blur = ops.blur(by_token(q), how.sigma, grid)
    return blur.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)


def _plain(attn: Any) -> bool:
    """Whether the weights of q, k and v say all that the projections do."""
    normed = getattr(attn, "norm_q", None) is not None or getattr(attn, "norm_k", None) is not None
    return not normed and all(
        is_plain(m) and not m._forward_hooks and not m._forward_pre_hooks
        for m in (attn.to_q, attn.to_k, attn.to_v)
    )


def _one_query(attn: Any, rows: Tensor) -> Tensor:
    """Attention of the mean query, `[rows, 1, C]`, without the keys and values of N tokens (the
    algebra of `fastguide.nets.attention`).
    """
    query = attn.to_q(rows.mean(1)).unflatten(-1, (attn.heads, -1))
    of_key, of_value = (m.weight.unflatten(0, (attn.heads, -1)) for m in (attn.to_k, attn.to_v))
    probe = torch.einsum("rhd,hdw->rhw", query, of_key) * attn.scale
    weights = (probe @ rows.transpose(1, 2)).softmax(-1, dtype=torch.float32).to(rows.dtype)
    value = torch.einsum("rhw,hdw->rhd", weights @ rows, of_value).flatten(1)
    return (value if attn.to_v.bias is None else value + attn.to_v.bias).unsqueeze(1)


# Joint attention of image and text tokens

JointMix = Callable[[Tensor, Tensor, Segment], tuple[Tensor, Tensor | None]]


def routed_joint(
    name: str, image: Tensor, text: Tensor, routing: Routing, mix: JointMix
) -> tuple[Tensor, Tensor | None]:
    """`mix(image rows, text rows, segment)`, `[rows, N or 1, C]` and `[rows, T, C]` or None, for
    each segment; NAG leads the image tokens alone.
    """
    if name in routing.observe:
        raise ValueError(f"layers has {name!r}, whose joint attention with text makes no SAG mask")
    segments = routing.segments.get(name)
    if segments is None:
        return mix(image, text, WHOLE)
    unit = image.shape[0] // segments[-1].stop
    parts = zip(split(image, segments), split(text, segments), segments, strict=True)
    mixed = [mix(*part) for part in parts]
    images: list[Tensor | None] = [one for one, _ in mixed]
    texts = [other for _, other in mixed if other is not None]
    led = [
        nag(one, images, segments, segment, unit, routing.nag).expand(-1, image.shape[1], -1)
        for (one, _), segment in zip(mixed, segments, strict=True)
    ]
    return torch.cat(led), torch.cat(texts) if texts else None


def attend_jointly(
    image: Heads, text: Heads, how: object, grid: Grid, with_text: bool = True
) -> tuple[Tensor, Tensor | None]:
    """`[rows, N or 1, C]` and `[rows, T, C]`: all tokens attend to all, but where `how` says else:
    under PAG an image token attends to itself and the text; under SEG image queries are blurred.
    Without `with_text` nothing asks for the text's own output.
    """
    keys, values = torch.cat([image.k, text.k], 2), torch.cat([image.v, text.v], 2)
    q = image.q
    if isinstance(how, Identity):
        alone = by_token(ops.identity_attention(*image, text.k, text.v))
        if not with_text:
            return alone, None
        return alone, by_token(F.scaled_dot_product_attention(text.q, keys, values))
    if isinstance(how, BlurredQueries):
        q = blurred(q, how, grid)
    joined = torch.cat([q, text.q], 2) if with_text else q
    z = by_token(F.scaled_dot_product_attention(joined, keys, values))
    if not with_text:
        return z, None
    return z[:, : q.shape[2]], z[:, q.shape[2] :]


# Cross-attention, whose keys and values are those of the text for the whole run

KeyValues = dict[str, tuple[Tensor, Tensor]]


def key_values(attn: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the text, `[rows, heads, T, d]`."""
    if getattr(attn, "norm_cross", None) is not None:
        text = attn.norm_encoder_hidden_states(text)
    k = _normed(attn, "norm_k", by_head(attn, attn.to_k(text)))
    return k, by_head(attn, attn.to_v(text))


def bias_of(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask `[rows, T]`, 1 to keep, as a bias `[rows, 1, 1, T]`."""
    if mask is None:
        return None
    return ((1 - mask.to(dtype)) * -10000.0)[:, None, None, :]
