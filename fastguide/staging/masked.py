"""Joint attention in which an image token attends to itself and the text, a text token to all."""

from __future__ import annotations

import torch
from torch import Tensor

from fastguide import ops
from fastguide.staging.attention import Attention
from fastguide.staging.probe import Met


def identity_with_context(call: Attention, met: Met) -> Tensor:
    """`[rows, heads, N, e]`; no N x N mask is built for it. What the call's own mask says of the
    text's keys holds.
    """
    assert met.queries is not None
    assert met.keys is not None
    if call.causal:
        raise ValueError("the attention is causal, which has no identity form with a context")
    (start, stop), (first, last) = met.queries, met.keys
    k, v = (_each_head(call, one) for one in (call.k, call.v))
    image = Attention(call.q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last])
    texts = [torch.cat([one[:, :, :first], one[:, :, last:]], 2) for one in (k, v)]
    alone = _alone(image, texts[0], texts[1], call, met)
    before, after = (_rest(call, some) for some in (slice(0, start), slice(stop, None)))
    return torch.cat([before, alone, after], 2)


def _each_head(call: Attention, x: Tensor) -> Tensor:
    return (
        x
        if x.shape[1] == call.q.shape[1]
        else x.repeat_interleave(call.q.shape[1] // x.shape[1], 1)
    )


def _rest(call: Attention, some: slice) -> Tensor:
    """The attention of other queries, to all."""
    q, mask = call.q[:, :, some], call.mask
    if q.shape[2] == 0:
        return q.new_empty((*q.shape[:3], call.v.shape[-1]))
    if mask is not None and mask.ndim > 1 and mask.shape[-2] != 1:
        mask = mask[..., some, :]
    return Attention(q, call.k, call.v, mask, False, call.scale, call.grouped).plain()


def _alone(image: Attention, text_k: Tensor, text_v: Tensor, call: Attention, met: Met) -> Tensor:
    """The image's tokens."""
    if call.mask is None:
        return ops.identity_attention(image.q, image.k, image.v, text_k, text_v, call.scale)
    assert met.queries is not None
    assert met.keys is not None
    (start, stop), (first, last) = met.queries, met.keys
    scale = image.q.shape[-1] ** -0.5 if call.scale is None else call.scale
    bias = _bias(call.mask, image.q.dtype)
    if bias.shape[-2] != 1:
        bias = bias[..., start:stop, :]
        own_bias = bias[..., first:last].diagonal(dim1=-2, dim2=-1)
    else:
        own_bias = bias[..., 0, first:last]
    text_bias = torch.cat([bias[..., :first], bias[..., last:]], -1)
    own = ((image.q * image.k).sum(-1) * scale + own_bias).unsqueeze(-1)
    scores = torch.cat([own, image.q @ text_k.transpose(-1, -2) * scale + text_bias], -1)
    weights = scores.float().softmax(-1).to(image.v.dtype)
    return weights[..., :1] * image.v + weights[..., 1:] @ text_v


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores, `[.., .., N or 1, M]`."""
    mask = mask if mask.ndim > 1 else mask.unsqueeze(0)
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
