"""gram on the GPU: sums over a chunk of a sample in fp32, then over its chunks in fp64. Reads x,
each branch and the factor once (2 or 4 bytes a branch, else 4); all additions have a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastguide.kernels.step import branch_offset, is_plain
from fastguide.kernels.tuning import lookup


@triton.jit
def products_kernel(
    partial_ptr,
    x_ptr,
    branch_ptrs,
    branch_strides,
    base_ptr,
    factor_ptr,
    numel,
    pixels,
    chunks,
    BRANCHES: tl.constexpr,
    DELTAS: tl.constexpr,
    FACTORED: tl.constexpr,
    PLAIN: tl.constexpr,
    EACH: tl.constexpr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # where: a chunk of STEPS blocks of one sample; a thread takes runs of 4 elements
    sample = (tl.program_id(0) // chunks).to(tl.int64)
    start = (tl.program_id(0) % chunks).to(INDEX) * (STEPS * BLOCK)
    N: tl.constexpr = BRANCHES + 1
    ENTRIES: tl.constexpr = N * (N + 3) // 2
    partial_ptr += tl.program_id(0).to(tl.int64) * ENTRIES

    if EACH:
        base_ptr += 2 * sample
    a, b = tl.load(base_ptr), tl.load(base_ptr + 1)
    sums = ()
    for _ in tl.static_range(ENTRIES):
        sums = sums + (tl.zeros([BLOCK // 4], tl.float32),)
    for step in tl.range(STEPS, loop_unroll_factor=UNROLL):
        element = tl.max_contiguous(start + step * BLOCK + tl.arange(0, BLOCK), 4)
        inside = element < numel

        # load: zeros past the end, which add nothing
        x = tl.load(x_ptr + sample * numel + element, mask=inside, other=0.0)
        branches = ()
        for k in tl.static_range(BRANCHES):
            at = branch_offset(branch_strides[k], sample, element, pixels, PLAIN)
            branch = tl.load(branch_ptrs[k] + at, mask=inside, other=0.0)
            branches = branches + (branch.to(tl.float32),)
        factor = x
        if FACTORED != 0:
            factor = tl.load(factor_ptr + sample * numel + element, mask=inside, other=0.0)

        # maths: the vectors, then their products and sums
        vectors = (branches[0], affine(a, x, b, branches[0]))
        for k in tl.static_range(1, BRANCHES):
            delta = branches[k]
            if (DELTAS >> k) & 1 == 0:
                delta = branches[0] - delta
            if (FACTORED >> k) & 1:
                delta = factor * delta
            vectors = vectors + (delta,)
        sums = add_products(sums, vectors, N, BLOCK)

    # store
    for i in tl.static_range(ENTRIES):
        tl.store(partial_ptr + i, tl.sum(sums[i]))


@triton.jit
def add_products(sums, vectors, N: tl.constexpr, BLOCK: tl.constexpr):
    """`sums`, the upper triangle of [N, N + 1], and within each thread: at [i, j] <v_i, v_j>, at
    [i, N] the sum of v_i."""
    quarters = ()
    for i in tl.static_range(N):
        even, odd = vectors[i].reshape(BLOCK // 4, 2, 2).split()
        quarters = quarters + (even.split() + odd.split(),)
    new = ()
    for i in tl.static_range(N):
        for j in tl.static_range(i, N + 1):
            total = sums[i * (N + 1) - i * (i - 1) // 2 + j - i]
            for q in tl.static_range(4):
                if j < N:
                    total = tl.fma(quarters[i][q], quarters[j][q], total)
                else:
                    total += quarters[i][q]
            new = new + (total,)
    return new


@triton.jit
def sums_kernel(
    out_ptr,
    partial_ptr,
    chunks,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):
    # where: entry (i, j) of one sample's matrix [N, N + 1]
    sample = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, SIZE)
    i, j = tl.minimum(r // (N + 1), r % (N + 1)), tl.maximum(r // (N + 1), r % (N + 1))
    entry = i * (N + 1) - i * (i - 1) // 2 + j - i  # of the upper triangle
    inside = r < N * (N + 1)

    # load and maths
    total = tl.zeros([ROWS, SIZE], tl.float64)
    for first in range(0, chunks, ROWS):
        chunk = first + tl.arange(0, ROWS)
        at = ((sample * chunks + chunk) * (N * (N + 3) // 2))[:, None] + entry[None, :]
        there = (chunk < chunks)[:, None] & inside[None, :]
        total += tl.load(partial_ptr + at, mask=there, other=0.0).to(tl.float64)

    # store
    tl.store(out_ptr + sample * (N * (N + 1)) + r, tl.sum(total, axis=0), mask=inside)


@triton.jit
def affine(a, x, b, y):
    """a x + b y to 1.5 roundings of the result, even where the terms cancel: the rounding error of
    b y is added back (Kahan)."""
    product = b * y
    return tl.fma(a, x, product) + tl.fma(b, y, -product)


def gram(
    x: Tensor,
    branches: list[Tensor],
    base: Tensor,
    deltas: int,
    factor: Tensor | None,
    factored: int,
) -> Tensor:
    """Launch on `x` [B, channels, pixels]; see fastguide.ops.gram for the arguments."""
    batch, channels, pixels = x.shape
    numel, n = channels * pixels, len(branches) + 1
    kernel = "gram" if len(branches) <= 4 else "gram_many"
    settings = lookup(kernel, x.device, branches=len(branches))
    chunk = settings["STEPS"] * settings["BLOCK"]
    chunks = max(1, triton.cdiv(numel, chunk))
    partial = torch.empty(batch, chunks, n * (n + 3) // 2, dtype=torch.float32, device=x.device)
    out = torch.empty(batch, n, n + 1, dtype=torch.float64, device=x.device)
    with torch.cuda.device_of(x):
        products_kernel[(batch * chunks,)](
            partial,
            x,
            tuple(branches),
            tuple(branch.stride() for branch in branches),
            base,
            factor,
            numel,
            pixels,
            chunks,
            BRANCHES=len(branches),
            DELTAS=deltas,
            FACTORED=factored,
            PLAIN=all(is_plain(branch) for branch in branches),
            EACH=base.ndim == 2,
            INDEX=tl.int32 if numel < 2**31 - chunk else tl.int64,
            BLOCK=settings["BLOCK"],
            STEPS=settings["STEPS"],
            UNROLL=settings["UNROLL"],
            enable_fp_fusion=True,  # Triton's default; said here, as later versions change it
            num_warps=settings["num_warps"],
        )
        size = triton.next_power_of_2(n * (n + 1))
        sums_kernel[(batch,)](
            out,
            partial,
            chunks,
            N=n,
            ROWS=min(triton.next_power_of_2(chunks), settings["TILE"] // size),
            SIZE=size,
            enable_fp_fusion=True,
            num_warps=8,
        )
    return out
