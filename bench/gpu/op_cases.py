"""Inputs of the ops for benchmarks, for tuning and for the sanitizer, each with the fewest bytes
that it must move through memory, or the operations that it must do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastguide import ops, reference
from fastguide.ops.blur import dense_like
from fastguide.ops.step import as_planes
from fastguide.ops.table import Column, Extra, width

FP32, BF16 = torch.float32, torch.bfloat16
ROUNDING = {FP32: 1e-5, BF16: 2**-7, torch.float16: 2**-9}


@dataclass(frozen=True)
class OpCase:
    """One call of an op.

    Args:
        call: the op as users call it; gives what it computes.
        want: the same from `fastguide.reference`, in fp64 on the CPU.
        moved: bytes of its inputs and outputs, each once.
        flops: of its matrix products, or 0.
        tolerance: of `call` against `want`, relative to the largest element.
        launch: the Triton kernel alone, or None where the op is CUDA C++.
        reset: puts the inputs back that a call writes to.
    """

    call: Callable[[], Tensor]
    want: Callable[[], Tensor]
    moved: int
    flops: float = 0.0
    tolerance: float = 1e-5
    launch: Callable[[], Tensor] | None = None
    reset: Callable[[], object] = lambda: None


def difference(got: Tensor, want: Tensor) -> float:
    """The largest, relative to the largest element; NaN counts as infinite."""
    got, want = got.double(), want.to(got.device).double()
    value = ((got - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
    return math.inf if math.isnan(value) else value


def check(case: OpCase) -> float:
    """`difference` of a call and what it should be.

    Raises:
        AssertionError: it is above the tolerance.
    """
    case.reset()
    found = difference(case.call(), case.want())
    if not found <= case.tolerance:
        raise AssertionError(f"differs from the reference by {found:.2e} > {case.tolerance:.2e}")
    return found


def size_of(*tensors: Tensor) -> int:
    """Bytes of the tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def step_case(
    device: torch.device,
    shape: tuple[int, ...],
    branches: int = 2,
    dtype: torch.dtype = BF16,
    drawn: bool = False,
    copies: int = 2,
) -> OpCase:
    """An update of `branches` predictions, without noise or with; x stays as large as it is,
    however often it is called.
    """
    batch = shape[0]
    start = torch.randn(1, *shape, device=device)
    state = start.clone()
    predictions = [torch.randn(shape, device=device).to(dtype) for _ in range(branches)]
    weights = torch.full((1, 1, branches + 1), 0.5, device=device)
    row = torch.zeros(width(1))
    row[Column.OF_X], row[Column.OF_PREDICTION], row[Column.INPUT_SCALE] = 0.3, -0.7, 1.0
    row[Column.LOW], row[Column.HIGH] = -math.inf, math.inf
    row[Column.MATRIX :] = torch.tensor([0.6, 0.4, 0.3 if drawn else 0.0, 0.0])
    table = row.view(1, -1).to(device)
    evaluation = torch.zeros((), dtype=torch.int64, device=device)
    bad = torch.ones(batch, dtype=torch.int32, device=device)
    seeds = torch.arange(batch, device=device) if drawn else None
    following = torch.empty(copies * batch, *shape[1:], dtype=dtype, device=device)
    views = (as_planes(state, 2), [as_planes(p, 1) for p in predictions], as_planes(following, 1))

    def call() -> Tensor:
        ops.step(
            state, predictions, weights, table, evaluation, bad, seeds=seeds, net_input=following
        )
        return following

    def launch() -> Tensor:
        from fastguide.kernels.step import step

        planes, branch_planes, target = views
        coefficients = (weights, table, evaluation, seeds, None)
        rest = (1, 1, None, None, Extra.NONE, 0, None, 0)
        step(planes, branch_planes, *coefficients, target, bad, *rest)
        return following

    def want() -> Tensor:
        noise = None
        if seeds is not None:
            noise = reference.noise(seeds.cpu(), 0, math.prod(shape[1:])).view(shape)
        wide = [p.cpu().double() for p in predictions]
        now = (start.cpu().double(), wide, weights[0].cpu(), row.double(), noise)
        return reference.step(*now)[1].repeat(copies, *[1] * (len(shape) - 1))

    def reset() -> None:
        state.copy_(start)

    moved = 2 * size_of(state) + size_of(*predictions, following)
    return OpCase(call, want, moved, 0.0, ROUNDING[dtype], launch, reset)


def gram_case(
    device: torch.device, shape: tuple[int, ...], branches: int = 2, dtype: torch.dtype = BF16
) -> OpCase:
    """Inner products of `branches` predictions and x0."""
    x = torch.randn(shape, device=device)
    predictions = [torch.randn(shape, device=device).to(dtype) for _ in range(branches)]
    base = torch.tensor([0.7, -1.3], device=device)
    plane, planes = as_planes(x, 1), [as_planes(p, 1) for p in predictions]

    def launch() -> Tensor:
        from fastguide.kernels.gram import gram

        return gram(plane, planes, base, 0, None, 0)

    def want() -> Tensor:
        return reference.gram(x.cpu().double(), [p.cpu() for p in predictions], base.cpu())

    moved = size_of(x, *predictions)
    return OpCase(lambda: ops.gram(x, predictions, base), want, moved, launch=launch)


def blur_case(
    device: torch.device,
    rows: int,
    grid: tuple[int, int],
    channels: int,
    dtype: torch.dtype = BF16,
    pixels: bool = False,
    sigma: float = 3.0,
) -> OpCase:
    """Tokens whose channels lie together, or an image whose `pixels` do."""
    tokens = grid[0] * grid[1]
    x = torch.randn(rows, tokens, channels, device=device).to(dtype)
    if pixels:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)

    def launch() -> Tensor:
        from fastguide.kernels.blur import blur

        out = dense_like(x)
        blur(out, x, None, sigma, sigma, *grid, 0)
        return out

    def want() -> Tensor:
        return reference.blur(x.cpu().double(), sigma, grid)

    call = lambda: ops.blur(x, sigma, grid)  # noqa: E731
    return OpCase(call, want, 2 * size_of(x), 0.0, 2 * ROUNDING[dtype], launch)


def heads_of(
    device: torch.device,
    rows: int,
    heads: int,
    tokens: int,
    dim: int,
    parts: int,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """`parts` views `[rows, heads, tokens, dim]` of one projection, as networks lay them out."""
    whole = torch.randn(rows, tokens, parts, heads, dim, device=device).to(dtype)
    return whole.permute(2, 0, 3, 1, 4).unbind(0)


def identity_case(
    device: torch.device,
    size: tuple[int, int, int, int, int],
    dtype: torch.dtype = BF16,
) -> OpCase:
    """`size` is (rows, heads, image tokens, text tokens, dim)."""
    rows, heads, queries, keys, dim = size
    q, k, v = heads_of(device, rows, heads, queries, dim, 3, dtype)
    text = heads_of(device, rows, heads, keys, dim, 2, dtype)

    def want() -> Tensor:
        return reference.identity_attention(
            *(t.cpu().double() for t in (q, k, v, *text)), dim**-0.5
        )

    flops = 4.0 * rows * heads * queries * (keys + 1) * dim
    call = lambda: ops.identity_attention(q, k, v, *text)  # noqa: E731
    return OpCase(call, want, size_of(q, k, v, v, *text), flops, 2 * ROUNDING[dtype])


def colsum_case(
    device: torch.device, size: tuple[int, int, int, int], dtype: torch.dtype = BF16
) -> OpCase:
    """`size` is (rows, heads, tokens, dim)."""
    rows, heads, tokens, dim = size
    q, k = heads_of(device, rows, heads, tokens, dim, 2, dtype)

    def launch() -> Tensor:
        from fastguide.kernels.attention_colsum import attention_colsum

        return attention_colsum(q, k, dim**-0.5)

    def want() -> Tensor:
        return reference.attention_colsum(q.cpu().double(), k.cpu().double(), dim**-0.5)

    flops = 4.0 * rows * heads * tokens * tokens * dim
    moved = size_of(q, k) + 4 * rows * tokens
    return OpCase(lambda: ops.attention_colsum(q, k), want, moved, flops, 1e-4, launch)


def group_norm_case(
    device: torch.device, size: tuple[int, int, int], dtype: torch.dtype = BF16, groups: int = 32
) -> OpCase:
    """`size` is (rows, tokens, channels); with SiLU."""
    tokens = torch.randn(size, device=device).to(dtype)
    gamma, beta = torch.randn(2, size[0], size[2], device=device)

    def launch() -> Tensor:
        from fastguide.kernels.group_norm import group_norm

        return group_norm(tokens, gamma, beta, groups, 1e-5, True)[0]

    def want() -> Tensor:
        wide = (tensor.cpu().double() for tensor in (tokens, gamma, beta))
        return reference.group_norm(*wide, groups, silu=True)

    call = lambda: ops.group_norm(tokens, gamma, beta, groups, silu=True)  # noqa: E731
    return OpCase(call, want, 2 * size_of(tokens), 0.0, 2 * ROUNDING[dtype], launch)


def group_norm_backward_case(
    device: torch.device, size: tuple[int, int, int], dtype: torch.dtype = BF16, groups: int = 32
) -> OpCase:
    """The gradient of the tokens; `size` as `group_norm_case` has it."""
    tokens, outward = (torch.randn(size, device=device).to(dtype) for _ in range(2))
    gamma, beta = torch.randn(2, size[0], size[2], device=device)
    known = torch.ops.fastguide.group_norm(tokens, gamma, beta, groups, 1e-5, True)[1:]
    given = (outward, tokens, *known, gamma, beta, True)

    def launch() -> Tensor:
        from fastguide.kernels.group_norm_backward import group_norm_backward

        return group_norm_backward(*given)[0]

    def want() -> Tensor:
        leaf = tokens.cpu().double().requires_grad_()
        wide = (tensor.cpu().double() for tensor in (gamma, beta))
        out = reference.group_norm(leaf, *wide, groups, silu=True)
        return torch.autograd.grad(out, leaf, outward.cpu().double())[0]

    call = lambda: torch.ops.fastguide.group_norm_backward(*given)[0]  # noqa: E731
    return OpCase(call, want, 3 * size_of(tokens), 0.0, 4 * ROUNDING[dtype], launch)
