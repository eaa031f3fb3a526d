"""attention_colsum on the GPU, in two passes over the scores, of which only a tile exists at a time:
the log-sum-exp of each query, then the sums of each key. 4 D flops and two exponentials for each
query, key and head; deterministic."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastguide.kernels.tuning import lookup


@triton.jit
def log_sum_exp_kernel(
    out_ptr,
    q_ptr,
    k_ptr,
    q_strides,
    k_strides,
    heads,
    queries,
    keys,
    dim,
    scale,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    # where: a block of queries of one head
    blocks = tl.cdiv(queries, QUERIES)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * QUERIES
    q_ptr += head // heads * q_strides[0] + head % heads * q_strides[1]
    k_ptr += head // heads * k_strides[0] + head % heads * k_strides[1]

    # maths: an online softmax, in units of log2
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    q = tokens(q_ptr, q_strides[2], start, queries, dim, 0, QUERIES, DEPTH)
    for first in range(0, keys, KEYS):
        k = tokens(k_ptr, k_strides[2], first, keys, dim, 0, KEYS, DEPTH)
        score = product(q, tl.trans(k))
        for part in tl.static_range(1, PARTS):
            q_part = tokens(q_ptr, q_strides[2], start, queries, dim, part, QUERIES, DEPTH)
            k = tokens(k_ptr, k_strides[2], first, keys, dim, part, KEYS, DEPTH)
            score += product(q_part, tl.trans(k))
        inside = first + tl.arange(0, KEYS) < keys
        score = tl.where(inside[None, :], score * scale, float("-inf"))
        before = top
        top = tl.maximum(top, tl.max(score, 1))
        total = total * tl.exp2(before - top) + tl.sum(tl.exp2(score - top[:, None]), 1)

    # store
    query = start + tl.arange(0, QUERIES)
    tl.store(out_ptr + head * queries + query, top + tl.log2(total), mask=query < queries)


@triton.jit
def column_sums_kernel(
    out_ptr,
    q_ptr,
    k_ptr,
    log_sum_ptr,
    q_strides,
    k_strides,
    heads,
    queries,
    keys,
    dim,
    scale,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    # where: a block of keys of one head
    blocks = tl.cdiv(keys, KEYS)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * KEYS
    q_ptr += head // heads * q_strides[0] + head % heads * q_strides[1]
    k_ptr += head // heads * k_strides[0] + head % heads * k_strides[1]
    log_sum_ptr += head * queries

    # maths: keys are the rows, so that the sum over queries stays within a few threads
    total = tl.zeros([KEYS], tl.float32)
    k = tokens(k_ptr, k_strides[2], start, keys, dim, 0, KEYS, DEPTH)
    for first in range(0, queries, QUERIES):
        q = tokens(q_ptr, q_strides[2], first, queries, dim, 0, QUERIES, DEPTH)
        score = product(k, tl.trans(q))
        for part in tl.static_range(1, PARTS):
            k_part = tokens(k_ptr, k_strides[2], start, keys, dim, part, KEYS, DEPTH)
            q = tokens(q_ptr, q_strides[2], first, queries, dim, part, QUERIES, DEPTH)
            score += product(k_part, tl.trans(q))
        query = first + tl.arange(0, QUERIES)
        log_sum = tl.load(log_sum_ptr + query, mask=query < queries, other=float("inf"))
        total += tl.sum(tl.exp2(score * scale - log_sum[None, :]), 1)

    # store
    key = start + tl.arange(0, KEYS)
    tl.store(out_ptr + head * keys + key, total, mask=key < keys)


@triton.jit
def tokens(x_ptr, stride, start, count, dim, part, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Tokens `start ...` and dimensions `part * DEPTH ...` of one head; zero past the last ones."""
    token, d = tl.arange(0, BLOCK), part * DEPTH + tl.arange(0, DEPTH)
    inside = (start + token < count)[:, None] & (d < dim)[None, :]
    x_ptr += tl.cast(start, tl.int64) * stride
    return tl.load(x_ptr + token[:, None] * stride + d[None, :], mask=inside, other=0.0)


@triton.jit
def product(a, b):
    """a b in fp32; fp32 factors as three TF32 products, which keep 21 bits of each."""
    return tl.dot(a, b, input_precision="tf32x3")


def attention_colsum(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Launch on q `[R, heads, N, D]` and k `[R, heads, M, D]`: fp32 `[R, M]`."""
    rows, heads, queries, dim = q.shape
    keys = k.shape[2]
    log_sums = torch.empty(rows, heads, queries, dtype=torch.float32, device=q.device)
    sums = torch.empty(rows, heads, keys, dtype=torch.float32, device=q.device)
    settings = lookup("attention_colsum", q.device, bits=8 * q.element_size(), dim=dim)
    depth = max(16, min(settings["BYTES"] // q.element_size(), triton.next_power_of_2(dim)))
    common = (
        *(q.stride()[:3], k.stride()[:3], heads, queries, keys, dim),
        scale * math.log2(math.e),
    )
    sizes = {
        "QUERIES": settings["QUERIES"],
        "KEYS": settings["KEYS"],
        "DEPTH": depth,
        "PARTS": triton.cdiv(dim, depth),
        "num_warps": settings["num_warps"],
        "num_stages": settings["num_stages"],
    }
    with torch.cuda.device_of(q):
        grid = (triton.cdiv(queries, sizes["QUERIES"]) * rows * heads,)
        log_sum_exp_kernel[grid](log_sums, q, k, *common, **sizes)
        grid = (triton.cdiv(keys, sizes["KEYS"]) * rows * heads,)
        column_sums_kernel[grid](sums, q, k, log_sums, *common, **sizes)
    return sums.mean(1)
