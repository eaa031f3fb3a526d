"""Meets the attention that modules compute, whatever computes it, in this thread alone.

`Meet` is a `TorchFunctionMode`: within it `F.scaled_dot_product_attention` is asked of `attend`,
and a softmax of a product of two matrices, which is how older processors and many networks write
it, of `weigh`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Attention:
    """A call: q `[rows, heads, N, d]`, k `[rows, heads, M, d]`, v `[rows, heads, M, e]`, perhaps
    with fewer heads in k and v, or without heads at all.

    Args:
        mask: bool, True to keep, or a bias that is added to the scores; broadcasts to them.
        scale: of the scores; None for d ** -0.5.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None = None
    causal: bool = False
    scale: float | None = None
    grouped: bool = False

    def plain(self) -> Tensor:
        """What it is without us."""
        return F.scaled_dot_product_attention(
            self.q,
            self.k,
            self.v,
            self.mask,
            0.0,
            self.causal,
            scale=self.scale,
            enable_gqa=self.grouped,
        )


@dataclass(frozen=True)
class Scores:
    """A softmax over the last dimension of `scores` `[..., N, M]`, made of the product of
    q `[..., N, d]` and k `[..., M, d]`.
    """

    scores: Tensor
    q: Tensor
    k: Tensor
    softmax: Callable[[Tensor], Tensor]


Attend = Callable[[Attention], Tensor]
Weigh = Callable[[Scores], Tensor]

_SOFTMAX = {torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax}
_PRODUCT = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_ADDED = {torch.baddbmm, Tensor.baddbmm}
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class Meet(TorchFunctionMode):
    """Within it the attention of this thread is met."""

    def __init__(self, attend: Attend, weigh: Weigh) -> None:
        super().__init__()
        self.attend, self.weigh = attend, weigh
        self._products: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # result, q, k

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _as_pytorch_lies(self.attend(_attention(args, kwargs)))
        if func is F.multi_head_attention_forward:
            return _multi_head(self.attend, args, kwargs)
        if func in _SOFTMAX:
            known = self._products.get(id(_first(args, kwargs)))
            if known is not None:
                return self._softmax(func, known, args, kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.ndim >= 3:
            self._follow(func, args, out)
        return out

    def _softmax(self, func: Any, known: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        given, q, k = known
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if dim not in (-1, given.ndim - 1):
            return func(*args, **kwargs)

        def softmax(scores: Tensor) -> Tensor:
            if args:
                return func(scores, *args[1:], **kwargs)
            return func(**{**kwargs, "input": scores})

        self._products.clear()
        return self.weigh(Scores(given, q, k, softmax))

    def _follow(self, func: Any, args: tuple[Any, ...], out: Tensor) -> None:
        """Remember a product, and what is made of one by scaling, masking and conversion."""
        operands = None
        if func in _PRODUCT or func in _ADDED:
            a, b = args[-2:] if func in _PRODUCT else args[1:3]
            operands = (a, b.transpose(-1, -2))
        elif func is torch.einsum and len(args) == 3:
            operands = _einsum(*args)
        if operands is not None:
            # of one product at a time: an attention's softmax comes before the next product
            self._products = {id(out): (out, *operands)}
            return
        for arg in args:
            known = self._products.get(id(arg)) if isinstance(arg, Tensor) else None
            if known is not None and out.shape == arg.shape:
                self._products[id(out)] = (out, *known[1:])
                return


def _as_pytorch_lies(out: Tensor) -> Tensor:
    """`[rows, heads, tokens, d]` with heads beside each other in memory, as PyTorch's attention
    leaves it for such operands: some processors take a view that relies on it.
    """
    return out if out.ndim != 4 else out.transpose(1, 2).contiguous().transpose(1, 2)


def _first(args: tuple[Any, ...], kwargs: Any) -> Any:
    return args[0] if args else kwargs.get("input")


def _attention(args: tuple[Any, ...], kwargs: Any) -> Attention:
    given = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
    if given.get("dropout_p", 0.0):
        raise ValueError(
            f"the attention drops out {given['dropout_p']} of its weights, but a network is "
            "sampled with dropout off: call net.eval()"
        )
    return Attention(
        given["query"],
        given["key"],
        given["value"],
        given.get("attn_mask"),
        bool(given.get("is_causal", False)),
        given.get("scale"),
        bool(given.get("enable_gqa", False)),
    )


def _einsum(equation: Any, a: Any, b: Any) -> tuple[Tensor, Tensor] | None:
    """The operands `[..., N, d]` and `[..., M, d]` of a product that is written as one."""
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return None
    inputs, out = equation.replace(" ", "").split("->")
    first, _, second = inputs.partition(",")
    summed = (set(first) & set(second)) - set(out)
    if len(summed) != 1 or len(out) < 3 or out[-2] not in first or out[-1] not in second:
        return None
    order = out[:-2]
    ends = (out[-2] + "".join(summed), out[-1] + "".join(summed))
    for letters, operand in ((first, ends[0]), (second, ends[1])):
        if set(letters) != set(order + operand):
            return None
    q = a.permute([first.index(letter) for letter in order + ends[0]])
    return q, b.permute([second.index(letter) for letter in order + ends[1]])


_MULTI_HEAD = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight"),
    *("in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight"),
    *("out_proj_bias", "training", "key_padding_mask", "need_weights", "attn_mask"),
)


def _multi_head(attend: Attend, args: tuple[Any, ...], kwargs: Any) -> Any:
    """`nn.MultiheadAttention`: its projections as they are, its attention asked of `attend`. The
    weights of the heads, which its callers rarely read, are not computed.
    """
    given = {**dict(zip(_MULTI_HEAD, args, strict=False)), **kwargs}
    unusual = ("bias_k", "bias_v", "static_k", "static_v")
    other = [name for name in unusual if given.get(name) is not None]
    other += [n for n in ("add_zero_attn", "use_separate_proj_weight") if given.get(n)]
    other += ["dropout"] * bool(given.get("training") and given.get("dropout_p"))
    if other:
        raise ValueError(f"an nn.MultiheadAttention has {', '.join(other)}, which guidance cannot")
    q, k, v = (given[name] for name in ("query", "key", "value"))
    weights, biases = given["in_proj_weight"].chunk(3), (None, None, None)
    if given["in_proj_bias"] is not None:
        biases = given["in_proj_bias"].chunk(3)
    heads = given["num_heads"]

    def split(x: Tensor, i: int) -> Tensor:  # [N, rows, C] to [rows, heads, N, d]
        return F.linear(x, weights[i], biases[i]).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)

    mask = given.get("attn_mask")
    if mask is not None:
        mask = mask.unflatten(0, (-1, heads)) if mask.ndim == 3 else mask
        mask = ~mask if mask.dtype == torch.bool else mask
    padding = given.get("key_padding_mask")
    if padding is not None:
        keep = padding if padding.is_floating_point() else ~padding
        keep = keep[:, None, None, :]
        mask = keep if mask is None else _both(mask, keep, q.dtype)
    call = Attention(split(q, 0), split(k, 1), split(v, 2), mask, bool(given.get("is_causal")))
    call = call if mask is None else Attention(call.q, call.k, call.v, mask)
    z = attend(call).permute(2, 0, 1, 3).flatten(2)
    return F.linear(z, given["out_proj_weight"], given["out_proj_bias"]), None


def _both(mask: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == keep.dtype == torch.bool:
        return mask & keep
    return _bias(mask, dtype) + _bias(keep, dtype)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, float("-inf"))
