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
SPREAD = tl.constexpr(5)
MATRIX = tl.constexpr(6)


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
    bound_ptr,
    factor_ptr,
    number_ptr,
    numel,
    pixels,
    weights_evaluation_stride,
    weights_sample_stride,
    SLOTS: tl.constexpr,
    READS: tl.constexpr,
    WRITES: tl.constexpr,
    BRANCHES: tl.constexpr,
    DELTAS: tl.constexpr,
    FACTORED: tl.constexpr,
    PLAIN: tl.constexpr,
    NOISE: tl.constexpr,
    VARIANCE: tl.constexpr,
    EXTRA: tl.constexpr,
    COPIES: tl.constexpr,
    EACH: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # where: a thread takes runs of 4 elements, the unit of the noise and of 16-byte access to fp32;
    # without the hint 16-bit branches get runs of 8, and shared memory to meet the fp32 slots
    # one grid axis holds samples x blocks: the other two end at 65,535
    blocks = tl.cdiv(numel, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    slot_stride = (tl.num_programs(0) // blocks).to(tl.int64) * numel
    start = (tl.program_id(0) % blocks).to(INDEX) * BLOCK
    element = tl.max_contiguous(start + tl.arange(0, BLOCK), 4)
    inside = element < numel
    at = sample * numel + element

    # load: elements first, as coefficients wait for the number of the evaluation
    x = tl.load(state_ptr + at, mask=inside)
    old = (x,)
    for j in tl.static_range(1, SLOTS):
        if (READS >> j) & 1:
            old = old + (tl.load(state_ptr + j * slot_stride + at, mask=inside),)
        else:
            old = old + (x,)  # not read
    branches = ()
    for k in tl.static_range(BRANCHES + VARIANCE):
        offset = branch_offset(branch_strides[k], sample, element, pixels, PLAIN)
        branches = branches + (tl.load(branch_ptrs[k] + offset, mask=inside).to(tl.float32),)
    factor = x
    if FACTORED != 0:
        factor = tl.load(factor_ptr + at, mask=inside)
    noise = tl.zeros_like(x)
    if NOISE == "given":
        noise = tl.load(noise_ptr + at, mask=inside)
    evaluation = tl.load(evaluation_ptr + sample if EACH else evaluation_ptr)
    number = evaluation
    if number_ptr is not None:
        number = tl.load(number_ptr + sample)
    row_ptr = table_ptr + evaluation * (MATRIX + SLOTS * (SLOTS + 3))
    weight_ptr = (
        weights_ptr + evaluation * weights_evaluation_stride + sample * weights_sample_stride
    )

    # maths
    denoised = tl.zeros_like(x)
    if BRANCHES > 0:
        guided = tl.load(weight_ptr + 1) * branches[0]
        negative = branches[0]
        for k in tl.static_range(1, BRANCHES):
            delta = branches[k]
            if (DELTAS >> k) & 1 == 0:
                delta = branches[0] - delta
            if k == 1:
                negative = branches[1]
                if (DELTAS >> 1) & 1:
                    negative = branches[0] - branches[1]
            if (FACTORED >> k) & 1:
                delta = factor * delta
            guided += tl.load(weight_ptr + 1 + k) * delta
        of_x, of_prediction = tl.load(row_ptr + OF_X), tl.load(row_ptr + OF_PREDICTION)
        denoised = (tl.load(weight_ptr) * of_x) * x + of_prediction * guided
        extra = denoised
        if EXTRA == "negative":
            extra = of_x * x + of_prediction * negative
        low, high = tl.load(row_ptr + LOW), tl.load(row_ptr + HIGH)
        denoised = tl.clamp(denoised, low, high, propagate_nan=tl.PropagateNan.ALL)
        if bound_ptr is not None:
            bound = tl.load(bound_ptr + sample)
            denoised = tl.clamp(denoised, -bound, bound, propagate_nan=tl.PropagateNan.ALL)
            denoised = denoised * (1.0 / bound)
    if NOISE == "drawn":
        noise = normals(tl.load(seeds_ptr + sample), number, start, BLOCK)
    if VARIANCE:
        noise = noise * tl.exp(tl.load(row_ptr + SPREAD) * branches[BRANCHES])

    # store: all old slots are in registers by now
    new_x = x
    for r in tl.static_range(SLOTS):
        if (WRITES >> r) & 1:
            c_ptr = row_ptr + MATRIX + r * (SLOTS + 3)
            out = tl.load(c_ptr + SLOTS) * denoised
            if NOISE != "none":
                out += tl.load(c_ptr + SLOTS + 1) * noise
            if BRANCHES > 0 and EXTRA != "none":
                out += tl.load(c_ptr + SLOTS + 2) * extra
            for j in tl.static_range(SLOTS):
                if (READS >> j) & 1:
                    out += tl.load(c_ptr + j) * old[j]
            tl.store(state_ptr + r * slot_stride + at, out, mask=inside)
            if r == 0:
                new_x = out
    if COPIES > 0:
        scaled = (tl.load(row_ptr + INPUT_SCALE) * new_x).to(input_ptr.dtype.element_ty)
        for copy in tl.static_range(COPIES):
            tl.store(input_ptr + copy * slot_stride + at, scaled, mask=inside)
    # 0 times infinity or NaN is NaN; summed within a thread, so that no barrier is needed
    bad = tl.sum(tl.where(inside, 0.0 * new_x, 0.0).reshape(BLOCK // 4, 4), axis=1) != 0.0
    target = first_bad_ptr + sample + tl.zeros([BLOCK // 4], tl.int32)
    tl.atomic_min(target, number.to(tl.int32), mask=bad, sem="relaxed")


@triton.jit
def branch_offset(strides, sample, element, pixels, PLAIN: tl.constexpr):
    """Where `element` of a branch lies; `strides` are those of (sample, channel, pixel)."""
    if PLAIN:
        return sample * strides[0] + element
    channel, pixel = (element // pixels).to(tl.int64), (element % pixels).to(tl.int64)
    return sample * strides[0] + channel * strides[1] + pixel * strides[2]


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
    variance: Tensor | None,
    bound: Tensor | None,
    extra: int,
    deltas: int,
    factor: Tensor | None,
    factored: int,
    number: Tensor | None = None,
) -> None:
    """Launch on `state` [slots, B, channels, pixels]; see fastguide.ops.step for the arguments."""
    slots, batch, channels, pixels = state.shape
    numel = channels * pixels
    views = branches if variance is None else [*branches, variance]
    plain = all(is_plain(view) for view in views)
    settings = lookup("step", state.device, branches=len(branches), noise=seeds is not None)
    grid = (triton.cdiv(numel, settings["BLOCK"]) * batch,)
    with torch.cuda.device_of(state):
        step_kernel[grid](
            state,
            tuple(views),
            tuple(view.stride() for view in views),
            weights,
            table,
            evaluation,
            seeds,
            noise,
            net_input,
            first_bad,
            bound,
            factor,
            number,
            numel,
            pixels,
            weights.stride(0),
            0 if weights.shape[1] == 1 else weights.stride(1),
            SLOTS=slots,
            READS=reads,
            WRITES=writes,
            BRANCHES=len(branches),
            DELTAS=deltas,
            FACTORED=factored,
            PLAIN=plain,
            NOISE="given" if noise is not None else "none" if seeds is None else "drawn",
            VARIANCE=variance is not None,
            EXTRA=("none", "unclamped", "negative")[extra],
            COPIES=0 if net_input is None else net_input.shape[0] // batch,
            EACH=evaluation.ndim == 1,
            INDEX=tl.int32 if numel < 2**31 - settings["BLOCK"] else tl.int64,
            BLOCK=settings["BLOCK"],
            enable_fp_fusion=True,  # Triton's default; said here, as later versions change it
            num_warps=settings["num_warps"],
        )


def is_plain(branch: Tensor) -> bool:
    """Whether the elements of each sample of `[B, channels, pixels]` lie one after the other."""
    return branch[0].is_contiguous()
