"""The fused update of a sampler: guidance, prediction and solver in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import fastguide._C  # noqa: F401  (registers the schema)
from fastguide.ops import table as _table
from fastguide.ops.table import Extra

EXTRAS = frozenset(Extra)
PREDICTION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def step(
    state: Tensor,
    branches: Sequence[Tensor],
    weights: Tensor,
    table: Tensor,
    evaluation: Tensor,
    first_bad: Tensor,
    seeds: Tensor | None = None,
    noise: Tensor | None = None,
    net_input: Tensor | None = None,
    reads: int | None = None,
    writes: int | None = None,
    variance: Tensor | None = None,
    bound: Tensor | None = None,
    extra: int = Extra.NONE,
    deltas: int = 0,
    factor: Tensor | None = None,
    factored: int = 0,
    checked: bool = False,
    number: Tensor | None = None,
) -> None:
    """Update `state` in place and write the next network input: the maths of
    `fastguide.reference.step`.

    Args:
        state: fp32 `[slots, B, *shape]`, contiguous; slot 0 is x, the others are history.
        branches: K active predictions `[B, *shape]`, each fp32, bf16 or fp16, any strides; the
            positive one first. Without any, the update is a map of the slots alone.
        weights: fp32 `[E, B or 1, > K]`: `denoised = w_x OF_X x + OF_PREDICTION guided`, with
            `guided = w_0 p_0 + sum_k w_k f_k delta_k`; in the order w_x, w_0, w_1 ...
        table: fp32 `[E, width(slots)]`, contiguous (`fastguide.ops.table`).
        evaluation: int64 scalar tensor, or int64 `[B]`, one for each sample: the row of `weights`
            and `table`, and of the noise.
        first_bad: int32 `[B]`; lowered to the evaluation at which x of a sample becomes non-finite.
        seeds: int64 `[B]`: the update draws noise number `evaluation` of each seed.
        noise: fp32 `[B, *shape]`, contiguous: used instead of drawn noise.
        net_input: contiguous `[r B, *shape]`: r copies of `INPUT_SCALE x`, cast to its dtype.
        reads, writes: bit j is set where slot j is read or written; all by default. A slot whose
            coefficients are 0 need not be read, and costs nothing then.
        variance: the network's own variance, like a branch: noise is scaled by `exp(SPREAD v)`.
        bound: fp32 `[B]`, positive: the denoised image is clamped to [-bound, bound] and divided by
            bound (dynamic thresholding).
        extra: `fastguide.ops.table.Extra`, the image that the last column of the matrix multiplies.
        deltas: bit k is set where branch k is delta_k itself, not p_k with delta_k = p_0 - p_k.
        factor: fp32 `[B, *shape]`, contiguous: f_k of the branches whose bit is set in `factored`;
            the others' is 1.
        checked: another step of a run passed with tensors of the same shapes and kinds.
        number: int64 `[B]`, beside an evaluation for each sample: what noise and `first_bad` count
            by in its place, where rows of several runs are stacked.

    Raises:
        ValueError: a shape, dtype, device or layout is not as above.
    """
    if not checked:
        known = (weights, table, evaluation, first_bad, seeds, noise, net_input)
        _check_step(state, branches, *known)
        if evaluation.ndim or number is not None:
            _check_each(state, evaluation, number)
        _check_extras(state, variance, bound, extra)
    if deltas or factored or factor is not None:
        check_deltas(state[0], branches, deltas, factor, factored)
    everything = (1 << state.shape[0]) - 1
    torch.ops.fastguide.step(
        as_planes(state, 2),
        [as_planes(branch, 1) for branch in branches],
        weights,
        table,
        evaluation,
        seeds,
        None if noise is None else as_planes(noise, 1),
        None if net_input is None else as_planes(net_input, 1),
        first_bad,
        everything if reads is None else reads,
        everything if writes is None else writes,
        None if variance is None else as_planes(variance, 1),
        bound,
        int(extra),
        deltas,
        None if factor is None else as_planes(factor, 1),
        factored,
        *(() if number is None else (number,)),
    )


def as_planes(tensor: Tensor, lead: int) -> Tensor:
    """`[*lead, channels, pixels]`; a view wherever the last dimensions can be one stride."""
    if tensor.ndim == lead + 1:
        return tensor.unsqueeze(lead)
    return tensor.flatten(lead + 1)


def _check_step(
    state: Tensor,
    branches: Sequence[Tensor],
    weights: Tensor,
    table: Tensor,
    evaluation: Tensor,
    first_bad: Tensor,
    seeds: Tensor | None,
    noise: Tensor | None,
    net_input: Tensor | None,
) -> None:
    if state.ndim < 3 or state.dtype != torch.float32 or not state.is_contiguous():
        raise ValueError(
            f"state is {state.dtype} of shape {tuple(state.shape)}, "
            "but it should be contiguous fp32 [slots, B, *shape]"
        )
    slots, sample = state.shape[0], state.shape[1:]
    if slots > _table.MAX_SLOTS:
        raise ValueError(f"state has {slots} slots, but at most {_table.MAX_SLOTS} are supported")
    for k, branch in enumerate(branches):
        if branch.shape != sample:
            raise ValueError(
                f"branches[{k}].shape is {tuple(branch.shape)}, but x is {tuple(sample)}"
            )
        if branch.dtype not in PREDICTION_DTYPES:
            raise ValueError(
                f"branches[{k}].dtype is {branch.dtype}, but it should be fp32, bf16 or fp16"
            )
    if table.dtype != torch.float32 or table.shape[1:] != (_table.width(slots),):
        raise ValueError(
            f"table is {table.dtype} of shape {tuple(table.shape)}, but for {slots} slots "
            f"it should be fp32 [E, {_table.width(slots)}]"
        )
    if (
        weights.ndim != 3
        or weights.dtype != torch.float32
        or weights.shape[1] not in (1, sample[0])
        or weights.shape[2] <= len(branches)
        or weights.shape[0] != table.shape[0]
    ):
        raise ValueError(
            f"weights is {weights.dtype} of shape {tuple(weights.shape)}, but it should be fp32 "
            f"[{table.shape[0]}, {sample[0]} or 1, > {len(branches)}]"
        )
    if evaluation.shape not in ((), sample[:1]) or evaluation.dtype != torch.int64:
        raise ValueError(
            f"evaluation is {evaluation.dtype} of shape {tuple(evaluation.shape)}, but it should "
            f"be an int64 scalar tensor, or int64 [{sample[0]}]"
        )
    if first_bad.shape != sample[:1] or first_bad.dtype != torch.int32:
        raise ValueError(
            f"first_bad is {first_bad.dtype} of shape {tuple(first_bad.shape)}, "
            f"but it should be int32 [{sample[0]}]"
        )
    if seeds is not None and (seeds.shape != sample[:1] or seeds.dtype != torch.int64):
        raise ValueError(
            f"seeds is {seeds.dtype} of shape {tuple(seeds.shape)}, "
            f"but it should be int64 [{sample[0]}]"
        )
    if noise is not None and (
        noise.shape != sample or noise.dtype != torch.float32 or not noise.is_contiguous()
    ):
        raise ValueError(
            f"noise is {noise.dtype} of shape {tuple(noise.shape)}, "
            f"but it should be contiguous fp32 {tuple(sample)}"
        )
    if net_input is not None and (
        net_input.shape[1:] != sample[1:]
        or net_input.shape[0] % sample[0]
        or net_input.dtype not in PREDICTION_DTYPES
        or not net_input.is_contiguous()
    ):
        raise ValueError(
            f"net_input is {net_input.dtype} of shape {tuple(net_input.shape)}, but it should be "
            f"contiguous fp32, bf16 or fp16 [r * {sample[0]}, *{tuple(sample[1:])}]"
        )
    others = (weights, table, seeds, evaluation, first_bad, noise, net_input, *branches)
    device = state.device
    for k, tensor in enumerate(others):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{_name(k)} is on {tensor.device}, but state is on {device}")
        if k < 3 and tensor is not None and not tensor.is_contiguous():
            raise ValueError(
                f"{_name(k)} has strides {tensor.stride()}, but it should be contiguous"
            )


def _name(k: int) -> str:
    """Of number k among the arguments beside the state."""
    names = ("weights", "table", "seeds", "evaluation", "first_bad", "noise", "net_input")
    return names[k] if k < len(names) else f"branches[{k - len(names)}]"


def _check_each(state: Tensor, evaluation: Tensor, number: Tensor | None) -> None:
    """What an evaluation for each sample needs."""
    if not evaluation.is_contiguous():
        raise ValueError(
            f"evaluation has strides {evaluation.stride()}, but it should be contiguous"
        )
    if number is None:
        return
    if evaluation.ndim == 0:
        raise ValueError("number is given, but evaluation is one for all samples")
    if (
        number.shape != evaluation.shape
        or number.dtype != torch.int64
        or not number.is_contiguous()
        or number.device != state.device
    ):
        raise ValueError(
            f"number is {number.dtype} of shape {tuple(number.shape)} on {number.device}, but it "
            f"should be contiguous int64 {tuple(evaluation.shape)} on {state.device}"
        )


def _check_extras(
    state: Tensor,
    variance: Tensor | None,
    bound: Tensor | None,
    extra: int,
) -> None:
    sample = state.shape[1:]
    if variance is not None and (
        variance.shape != sample
        or variance.dtype not in PREDICTION_DTYPES
        or variance.device != state.device
    ):
        raise ValueError(
            f"variance is {variance.dtype} of shape {tuple(variance.shape)} on {variance.device}, "
            f"but it should be fp32, bf16 or fp16 of shape {tuple(sample)}"
        )
    if bound is not None and (
        bound.shape != sample[:1] or bound.dtype != torch.float32 or bound.device != state.device
    ):
        raise ValueError(
            f"bound is {bound.dtype} of shape {tuple(bound.shape)} on {bound.device}, "
            f"but it should be fp32 [{sample[0]}]"
        )
    if extra not in EXTRAS:
        raise ValueError(f"extra is {extra}, but it should be one of {[*Extra]}")


def check_deltas(
    x: Tensor,
    branches: Sequence[Tensor],
    deltas: int,
    factor: Tensor | None,
    factored: int,
) -> None:
    """Raise ValueError unless the masks and the factor fit `x` `[B, *shape]` and its branches."""
    possible = (1 << len(branches)) - 2 if branches else 0  # all but the positive one
    for name, mask in (("deltas", deltas), ("factored", factored)):
        if mask & ~possible:
            raise ValueError(
                f"{name} is {mask:#b}, but it may have the bits {possible:#b}: those of the "
                "branches beside the positive one"
            )
    if bool(factored) != (factor is not None):
        raise ValueError(f"factored is {factored:#b}, but factor is {type(factor).__name__}")
    if factor is not None and (
        factor.shape != x.shape
        or factor.dtype != torch.float32
        or not factor.is_contiguous()
        or factor.device != x.device
    ):
        raise ValueError(
            f"factor is {factor.dtype} of shape {tuple(factor.shape)} on {factor.device}, but it "
            f"should be contiguous fp32 {tuple(x.shape)}"
        )


@torch.library.register_fake("fastguide::step")
def _step_fake(*_: Any) -> None:
    return None


@torch.library.impl("fastguide::step", "CUDA")
def _step_cuda(*arguments: Any) -> None:
    from fastguide.kernels.step import step

    step(*arguments)
