"""step on the GPU. Per element it reads x, each branch and the slots in READS once (4 bytes a slot,
2 or 4 a branch) and writes the slots in WRITES and the copies of the next input once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastguide.kernels.philox import normals
from fastguide.kernels.tuning import lookup

# columns of the table: fastguide/table.py
OF_X = tl.constexpr(0)
OF_PREDICTION = tl.constexpr(1)
LOW = tl.constexpr(2)
HIGH = tl.constexpr(3)
INPUT_SCALE = tl.constexpr(4)
MATRIX = tl.constexpr(5)


@triton.jit
def step_kernel(
    state_ptr,
    branch_ptrs,
    branch_strides,
    weights_ptr,
    table_ptr,
    evaluation_ptr,
    seeds_ptr,
    noise_ptr,
    input_ptr,
    first_bad_ptr,
    numel,
    pixels,
    slot_stride,
    weights_evaluation_stride,
    weights_sample_stride,
    SLOTS: tl.constexpr,
    READS: tl.constexpr,
    WRITES: tl.constexpr,
    BRANCHES: tl.constexpr,
    PLAIN: tl.constexpr,
    NOISE: tl.constexpr,
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # where
    sample = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    element = start + tl.arange(0, BLOCK)
    inside = element < numel
    at = sample * numel + element
    evaluation = tl.load(evaluation_ptr)
    row_ptr = table_ptr + evaluation * (MATRIX + SLOTS * (SLOTS + 2))
    weight_ptr = (
        weights_ptr + evaluation * weights_evaluation_stride + sample * weights_sample_stride
    )

    # load
    x = tl.load(state_ptr + at, mask=inside)
    denoised = tl.zeros_like(x)
    if BRANCHES > 0:
        positive = load_branch(branch_ptrs[0], branch_strides[0], sample, element, pixels, inside, PLAIN)
        guided = tl.load(weight_ptr) * positive
        for k in tl.static_range(1, BRANCHES):
            other = load_branch(
                branch_ptrs[k], branch_strides[k], sample, element, pixels, inside, PLAIN
            )
            guided += tl.load(weight_ptr + k) * (positive - other)

        # maths: comparisons, not min and max: a NaN must stay one
        denoised = tl.load(row_ptr + OF_X) * x + tl.load(row_ptr + OF_PREDICTION) * guided
        low = tl.load(row_ptr + LOW)
        high = tl.load(row_ptr + HIGH)
        denoised = tl.where(denoised < low, low, denoised)
        denoised = tl.where(denoised > high, high, denoised)
    noise = tl.zeros_like(x)
    if NOISE == "drawn":
        noise = normals(tl.load(seeds_ptr + sample), evaluation, start, BLOCK)
    if NOISE == "given":
        noise = tl.load(noise_ptr + at, mask=inside)

    old = (x,)
    for j in tl.static_range(1, SLOTS):
        if (READS >> j) & 1:
            old = old + (tl.load(state_ptr + j * slot_stride + at, mask=inside),)
        else:
            old = old + (x,)  # not read

    # store: all old slots are in registers by now
    new_x = x
    for r in tl.static_range(SLOTS):
        if (WRITES >> r) & 1:
            c_ptr = row_ptr + MATRIX + r * (SLOTS + 2)
            out = tl.load(c_ptr + SLOTS) * denoised
            if NOISE != "none":
                out += tl.load(c_ptr + SLOTS + 1) * noise
            for j in tl.static_range(SLOTS):
                if (READS >> j) & 1:
                    out += tl.load(c_ptr + j) * old[j]
            tl.store(state_ptr + r * slot_stride + at, out, mask=inside)
            if r == 0:
                new_x = out
    finite = (new_x.to(tl.uint32, bitcast=True) & 0x7F800000) != 0x7F800000
    bad = tl.max(tl.where(inside & (finite == 0), 1, 0))
    tl.atomic_min(first_bad_ptr + sample, evaluation.to(tl.int32), mask=bad > 0)
    if COPIES > 0:
        scaled = tl.load(row_ptr + INPUT_SCALE) * new_x
        for copy in tl.static_range(COPIES):
            target = input_ptr + copy * slot_stride + at
            tl.store(target, scaled.to(input_ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_branch(ptr, strides, sample, element, pixels, inside, PLAIN: tl.constexpr):
    """One branch as fp32; `strides` are those of (sample, channel, pixel)."""
    if PLAIN:
        offset = sample * strides[0] + element
    else:
        offset = sample * strides[0] + element // pixels * strides[1] + element % pixels * strides[2]
    return tl.load(ptr + offset, mask=inside).to(tl.float32)


def step(
    state: Tensor,
    branches: list[Tensor],
    weights: Tensor,
    table: Tensor,
    evaluation: Tensor,
    seeds: Tensor | None,
    noise: Tensor | None,
    net_input: Tensor | None,
    first_bad: Tensor,
    reads: int,
    writes: int,
) -> None:
    """Launch on `state` [slots, B, channels, pixels]; see fastguide.ops.step for the arguments."""
    slots, batch, channels, pixels = state.shape
    numel = channels * pixels
    plain = all(is_plain(branch) for branch in branches)
    settings = lookup("step", state.device, branches=len(branches), noise=seeds is not None)
    grid = (triton.cdiv(numel, settings["BLOCK"]), batch)
    with torch.cuda.device_of(state):
        step_kernel[grid](
            state,
            tuple(branches),
            tuple(branch.stride() for branch in branches),
            weights,
            table,
            evaluation,
            seeds,
            noise,
            net_input,
            first_bad,
            numel,
            pixels,
            state.stride(0),
            weights.stride(0),
            0 if weights.shape[1] == 1 else weights.stride(1),
            SLOTS=slots,
            READS=reads,
            WRITES=writes,
            BRANCHES=len(branches),
            PLAIN=plain,
            NOISE="given" if noise is not None else "none" if seeds is None else "drawn",
            COPIES=0 if net_input is None else net_input.shape[0] // batch,
            BLOCK=settings["BLOCK"],
            num_warps=settings["num_warps"],
        )


def is_plain(branch: Tensor) -> bool:
    """Whether the elements of each sample of `[B, channels, pixels]` lie one after the other."""
    return branch[0].is_contiguous()
