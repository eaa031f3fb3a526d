"""Self-attention that guidance can perturb in chosen rows, each at no more than its own cost.

| rows | projections | attention |
|---|---|---|
| plain | q, k, v, out | all tokens to all |
| `Identity` | v, out | none |
| `BlurredQueries`, finite | q, k, v, out | all to all |
| `BlurredQueries`, inf | none of N tokens | one query a head: all queries are one |
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastguide import ops
from fastguide.nets.linear import joined
from fastguide.staging.contract import PLAIN, Routing, Segment, split
from fastguide.staging.normalized import nag
from fastguide.staging.perturbation import BlurredQueries, Identity, Perturbation

Grid = tuple[int, int]


class SelfAttention(nn.Module):
    """Multi-head self-attention on `[rows, N, width]` with its output projection.

    Args:
        name: what `routing` calls it.
        parts: 2 keeps the first half of the channels from the second (`OneWay`).
    """

    folded_weight: Tensor | None
    folded_bias: Tensor | None

    def __init__(self, name: str, width: int, heads: int, parts: int = 1) -> None:
        super().__init__()
        self.name, self.heads = name, heads
        self.qkv = joined(width, width, times=3, parts=parts)
        self.proj = joined(width, width, parts=parts)
        self.register_buffer("folded_weight", None, persistent=False)
        self.register_buffer("folded_bias", None, persistent=False)

    def fold(self) -> None:
        """Keep W_out W_v, so that identity rows take one product instead of two. Call it again when
        the weights change, or `unfold`.
        """
        (out, out_bias), (value, value_bias) = (
            tuple(tensor.double() for tensor in matrix)
            for matrix in (self.proj.matrix(0), self.qkv.matrix(2))
        )
        weight, bias = out @ value, out @ value_bias + out_bias
        dtype = self.proj.matrix(0)[0].dtype
        self.folded_weight, self.folded_bias = weight.to(dtype), bias.to(dtype)

    def unfold(self) -> None:
        """Drop what `fold` keeps."""
        self.folded_weight = self.folded_bias = None

    def forward(self, tokens: Tensor, grid: Grid, routing: Routing = PLAIN) -> Tensor:
        """Attend; `grid` (h, w) is how the N = h w tokens lie, row by row."""
        segments = routing.segments.get(self.name)
        if segments is None:
            return self.proj(self._plain(tokens))
        unit = tokens.shape[0] // segments[-1].stop
        parts = split(tokens, segments)
        mixed = [
            None if self._folds(segment) else self._mixed(rows, segment, unit, grid, routing)
            for rows, segment in zip(parts, segments, strict=True)
        ]
        outputs = []
        for rows, segment, one in zip(parts, segments, mixed, strict=True):
            if one is None:
                assert self.folded_weight is not None
                outputs.append(F.linear(rows, self.folded_weight, self.folded_bias))
                continue
            led = nag(one, mixed, segments, segment, unit, routing.nag)
            outputs.append(self.proj(led).expand(-1, tokens.shape[1], -1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _folds(self, segment: Segment) -> bool:
        """Whether the rows' output is one product of their input."""
        identity = isinstance(segment.how, Identity) and segment.against is None
        return identity and self.folded_weight is not None

    def _mixed(
        self, rows: Tensor, segment: Segment, unit: int, grid: Grid, routing: Routing
    ) -> Tensor:
        """What the output projection is given: `[rows, N, width]`, or `[rows, 1, width]` where all
        tokens are the same.
        """
        how = segment.how
        if isinstance(how, Identity):
            return self.qkv.part(rows, 2)
        if isinstance(how, BlurredQueries) and how.flat:
            return self._one_query(rows)
        wanted = [
            (block - segment.start, key)
            for block, key in routing.observe.get(self.name, ())
            if segment.start <= block < segment.stop
        ]
        if how is not None or not wanted:
            return self._plain(rows, how, grid)
        qkv = self.qkv(rows)
        q, k, _ = self._heads(qkv)
        for block, key in wanted:
            some = slice(block * unit, (block + 1) * unit)
            routing.observed[key] = (ops.attention_colsum(q[some], k[some]), grid)
        return ops.self_attention(qkv, self.heads)

    def _plain(self, rows: Tensor, how: Perturbation | None = None, grid: Grid = (1, 1)) -> Tensor:
        qkv = self.qkv(rows)
        if not isinstance(how, BlurredQueries):
            return ops.self_attention(qkv, self.heads)
        blurred = ops.blur(qkv[..., : rows.shape[2]], how.sigma, grid)
        q = blurred.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        _, k, v = self._heads(qkv)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v `[rows, heads, N, d]`, views."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _one_query(self, rows: Tensor) -> Tensor:
        """Attention of the mean query, `[rows, 1, width]`, without the keys and values of N tokens.

        q . (W_k x_j + b_k) = (W_k^T q) . x_j + const, and the constant drops out of the softmax;
        sum_j p_j (W_v x_j + b_v) = W_v (sum_j p_j x_j) + b_v.
        """
        query = self.qkv.part(rows.mean(1), 0).unflatten(-1, (self.heads, -1))
        of_key, of_value, bias = (
            tensor.unflatten(0, (self.heads, -1))
            for tensor in (self.qkv.matrix(1)[0], *self.qkv.matrix(2))
        )
        probe = torch.einsum("rhd,hdw->rhw", query, of_key) * query.shape[-1] ** -0.5
        weights = (probe @ rows.transpose(1, 2)).softmax(-1, dtype=torch.float32).to(rows.dtype)
        value = torch.einsum("rhw,hdw->rhd", weights @ rows, of_value) + bias
        return value.flatten(1).unsqueeze(1)


def fold_identity(net: nn.Module) -> None:
    """`SelfAttention.fold` in all layers of `net`: perturbed-attention guidance takes one product
    less a layer, in return for one more matrix of weights.
    """
    for module in net.modules():
        if isinstance(module, SelfAttention):
            module.fold()
