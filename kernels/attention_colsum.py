"""attention_colsum on the GPU, in two passes over scores of which only a tile exists at a time:
the largest score and the sum of each query, then the sums of each key. 4 D flops and two
exponentials for each query, key and head; deterministic."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastguide.kernels.tuning import lookup


@triton.jit
def row_softmax_kernel(
    top_ptr,
    inverse_ptr,
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
        if PARTS == 1:
            score = product(q, tokens(k_ptr, k_strides[2], first, keys, dim, 0, KEYS, DEPTH))
        else:
            score = tl.zeros([QUERIES, KEYS], tl.float32)
            for part in range(PARTS):
                q = tokens(q_ptr, q_strides[2], start, queries, dim, part, QUERIES, DEPTH)
                k = tokens(k_ptr, k_strides[2], first, keys, dim, part, KEYS, DEPTH)
                score += product(q, k)
        inside = first + tl.arange(0, KEYS) < keys
        score = tl.where(inside[None, :], score * scale, float("-inf"))
        before = top
        top = tl.maximum(top, tl.max(score, 1))
        total = total * tl.exp2(before - top) + tl.sum(tl.exp2(score - top[:, None]), 1)

    # store
    query = start + tl.arange(0, QUERIES)
    tl.store(top_ptr + head * queries + query, top, mask=query < queries)
    tl.store(inverse_ptr + head * queries + query, 1.0 / total, mask=query < queries)


@triton.jit
def column_sums_kernel(
    out_ptr,
    q_ptr,
    k_ptr,
    top_ptr,
    inverse_ptr,
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
    top_ptr += head * queries
    inverse_ptr += head * queries

    # maths: keys are the rows, so that the sum over queries stays within a few threads
    total = tl.zeros([KEYS], tl.float32)
    k = tokens(k_ptr, k_strides[2], start, keys, dim, 0, KEYS, DEPTH)
    for first in range(0, queries, QUERIES):
        if PARTS == 1:
            score = product(k, tokens(q_ptr, q_strides[2], first, queries, dim, 0, QUERIES, DEPTH))
        else:
            score = tl.zeros([KEYS, QUERIES], tl.float32)
            for part in range(PARTS):
                k = tokens(k_ptr, k_strides[2], start, keys, dim, part, KEYS, DEPTH)
                q = tokens(q_ptr, q_strides[2], first, queries, dim, part, QUERIES, DEPTH)
                score += product(k, q)
        query = first + tl.arange(0, QUERIES)
        top = tl.load(top_ptr + query, mask=query < queries, other=0.0)
        inverse = tl.load(inverse_ptr + query, mask=query < queries, other=0.0)
        total += tl.sum(tl.exp2(score * scale - top[None, :]) * inverse[None, :], 1)

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
    """a b^T in fp32; fp32 factors as three TF32 products, which keep 21 bits of each."""
    return tl.dot(a, tl.trans(b), input_precision="tf32x3")


def attention_colsum(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Launch on q `[R, heads, N, D]` and k `[R, heads, M, D]`: fp32 `[R, M]`."""
    rows, heads, queries, dim = q.shape
    keys = k.shape[2]
    # apart, as a large score would round the logarithm of the sum away
    top, inverse = torch.empty(2, rows, heads, queries, dtype=torch.float32, device=q.device)
    sums = torch.empty(rows, heads, keys, dtype=torch.float32, device=q.device)
    kernel = "attention_colsum_fp32" if q.dtype == torch.float32 else "attention_colsum"
    settings = lookup(kernel, q.device, dim=dim)
    depth = max(16, min(settings["DEPTH"], triton.next_power_of_2(dim)))
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
        row_softmax_kernel[grid](top, inverse, q, k, *common, **sizes)
        grid = (triton.cdiv(keys, sizes["KEYS"]) * rows * heads,)
        column_sums_kernel[grid](sums, q, k, top, inverse, *common, **sizes)
    return sums.mean(1)
