"""Calls of the ops as torch.ops.fastguide.<op>, with one or two arguments made wrong.

Run as a script it is the attack's child: `raw_ops.py SEED FIRST COUNT [LIBRARY]` calls the ops of
the installed build, or of LIBRARY (build/sanitized/_C.so), and prints what became of the calls.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from attack import draw
from torch import Tensor

Arguments = dict[str, Any]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def step(source: random.Random) -> Arguments:
    slots, batch = source.randint(1, 3), source.randint(1, 3)
    channels, pixels, evaluations = source.randint(1, 3), source.randint(1, 600), 3
    sample, branches = (batch, channels, pixels), source.randint(0, 3)
    each = source.choice((False, True))
    evaluation = torch.tensor([source.randrange(evaluations) for _ in range(batch)])
    return {
        "state": torch.randn(slots, *sample),
        "branches": [torch.randn(sample).to(source.choice(FLOATS)) for _ in range(branches)],
        "weights": torch.randn(evaluations, source.choice((1, batch)), 1 + branches),
        "table": torch.randn(evaluations, 6 + slots * (slots + 3)),
        "evaluation": evaluation if each else evaluation[0],
        "seeds": source.choice((None, torch.arange(batch))),
        "noise": source.choice((None, torch.randn(sample))),
        "net_input": source.choice((None, torch.empty(2 * batch, channels, pixels))),
        "first_bad": torch.full((batch,), 99, dtype=torch.int32),
        "reads": (1 << slots) - 1,
        "writes": (1 << slots) - 1,
        "variance": source.choice((None, torch.randn(sample))),
        "bound": source.choice((None, torch.rand(batch) + 1)),
        "extra": source.choice((0, 1, 2)),
        "deltas": source.choice((0, 2)),
        "factor": torch.randn(sample),
        "factored": source.choice((0, 2, 4)),
        "number": source.choice((None, torch.arange(batch))) if each else None,
    }


def gram(source: random.Random) -> Arguments:
    sample = (source.randint(1, 3), source.randint(1, 3), source.randint(1, 600))
    branches = [torch.randn(sample).to(source.choice(FLOATS)) for _ in range(source.randint(1, 8))]
    return {
        "x": torch.randn(sample),
        "branches": branches,
        "base": source.choice((torch.randn(2), torch.randn(sample[0], 2))),
        "deltas": source.choice((0, 2)),
        "factor": torch.randn(sample),
        "factored": source.choice((0, 2)),
    }


SIGMAS = (0.0, 1.0, 1e-30, 1e30, float("inf"), float("nan"))


def blur(source: random.Random) -> Arguments:
    rows, height, width = source.randint(1, 3), source.randint(1, 9), source.randint(1, 9)
    return {
        "x": torch.randn(rows, height * width, source.randint(1, 40)),
        "sigmas": source.choice((None, torch.rand(rows))),
        "down": source.choice(SIGMAS),
        "across": source.choice(SIGMAS),
        "height": height,
        "width": width,
        "kernel_size": source.choice((0, 1, 3, 4, 99)),
    }


def noise(source: random.Random) -> Arguments:
    seeds = torch.arange(source.randint(1, 4))
    counter = source.choice((None, torch.tensor(3), seeds + 7))
    return {
        "seeds": seeds,
        "evaluation": source.choice((0, 7, -1)),
        "numel": source.choice((0, 1, 5, 4097)),
        "counter": counter,
    }


def group_norm(source: random.Random) -> Arguments:
    rows, groups = source.randint(1, 3), source.randint(1, 4)
    channels = groups * source.randint(1, 20)
    return {
        "tokens": torch.randn(rows, source.randint(1, 70), channels).to(source.choice(FLOATS)),
        "gamma": torch.randn(rows, channels),
        "beta": torch.randn(1, channels).expand(rows, -1),
        "groups": groups,
        "eps": 1e-5,
        "silu": source.random() < 0.5,
    }


def group_norm_backward(source: random.Random) -> Arguments:
    given = group_norm(source)
    statistics = (given["tokens"].shape[0], given["groups"])
    return {
        "outward": torch.randn_like(given["tokens"]),
        "tokens": given["tokens"],
        "mean": torch.randn(statistics),
        "inverse": torch.rand(statistics),
        "gamma": given["gamma"],
        "beta": given["beta"],
        "silu": given["silu"],
    }


def identity_attention(source: random.Random) -> Arguments:
    rows, heads, dim = source.randint(1, 2), source.randint(1, 3), source.randint(1, 70)
    keys, kind = source.randint(0, 9), source.choice(FLOATS)
    image = (rows, heads, source.randint(1, 40), dim)
    return {
        **{name: torch.randn(image).to(kind) for name in ("q", "k", "v")},
        "context_k": torch.randn(rows, heads, keys, dim).to(kind),
        "context_v": torch.randn(rows, heads, keys, dim).to(kind),
        "scale": 0.5,
        "context_mask": source.choice((None, torch.ones(rows, keys, dtype=torch.bool))),
    }


def attention_colsum(source: random.Random) -> Arguments:
    rows, heads, dim = source.randint(1, 2), source.randint(1, 3), source.randint(1, 70)
    kind = source.choice(FLOATS)
    return {
        "q": torch.randn(rows, heads, source.randint(1, 70), dim).to(kind),
        "k": torch.randn(rows, heads, source.randint(1, 70), dim).to(kind),
        "scale": 0.5,
    }


def self_attention(source: random.Random) -> Arguments:
    heads = source.randint(1, 4)
    width = 3 * heads * source.randint(1, 40)
    shape = (source.randint(1, 2), source.randint(1, 70), width)
    return {"qkv": torch.randn(shape).to(source.choice(FLOATS)), "heads": heads}


def self_attention_backward(source: random.Random) -> Arguments:
    given = self_attention(source)
    rows, tokens, width = given["qkv"].shape
    out = torch.randn(rows, tokens, width // 3).to(given["qkv"].dtype)
    return {
        "outward": out.clone(),
        "qkv": given["qkv"],
        "out": out,
        "lse": torch.randn(rows, given["heads"], tokens),
        "heads": given["heads"],
    }


OPS: dict[str, Callable[[random.Random], Arguments]] = {
    made.__name__: made
    for made in (
        *(step, step, step, gram, gram, blur, noise, group_norm, group_norm_backward),
        *(identity_attention, attention_colsum, self_attention, self_attention_backward),
    )
}
NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 62, 63, 64, 2**31, 2**32, 2**62, 2**63 - 1)


def wrong_tensor(tensor: Tensor, source: random.Random) -> Any:
    """The same tensor with another size, stride, dtype, device or number of dimensions; or huge,
    without memory: expanded from one element, or of no elements.
    """
    way = source.randrange(12)
    dims = tensor.dim()
    dim = source.randrange(dims) if dims else 0
    if way == 0 and dims:
        return tensor.narrow(dim, 0, source.randrange(tensor.shape[dim] + 1)).clone()
    if way == 1 and dims:
        return tensor.narrow(dim, 0, source.randrange(tensor.shape[dim] + 1))
    if way == 2 and dims:
        return torch.cat([tensor, tensor], dim)
    if way == 3 and dims:
        a, b = source.randrange(dims), source.randrange(dims)
        return tensor.transpose(a, b)
    if way == 4:
        return tensor.to(source.choice((torch.float64, torch.int8, torch.int64, torch.bool)))
    if way == 5:
        return tensor.to(source.choice((torch.float16, torch.bfloat16, torch.float32)))
    if way == 6:
        return tensor.to("meta")
    if way == 7:
        return source.choice((tensor.unsqueeze(0), tensor.flatten(), tensor.sum()))
    if way == 8 and dims:
        sizes = [source.choice((1, 2**20, 2**31, 2**40)) for _ in range(dims)]
        return tensor.flatten()[:1].reshape([1] * dims).expand(sizes)
    if way == 9 and dims:
        sizes = [source.choice((1, 2**31, 2**62)) for _ in range(dims)]
        sizes[0] = 0
        return torch.empty(sizes, dtype=tensor.dtype)
    if way == 10 and dims:
        return torch.cat([tensor, tensor], dim).narrow(dim, 0, tensor.shape[dim])
    return tensor.flatten()[:1].reshape([1] * dims).expand(tensor.shape)


def wrong(value: Any, source: random.Random) -> Any:
    """Another value of the same kind, or none."""
    if isinstance(value, Tensor):
        return wrong_tensor(value, source) if source.random() < 0.95 else None
    if isinstance(value, list):
        way = source.randrange(4)
        if way == 0:
            return value * source.choice((0, 2, 40))
        return [wrong_tensor(one, source) if source.random() < 0.5 else one for one in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return source.choice(NUMBERS)
    return source.choice((0.0, -1.0, 1e300, float("nan"), float("inf")))


def call(source: random.Random) -> str:
    """Make one wrong call; the exception's name, or what it did without one."""
    torch.manual_seed(source.randrange(2**31))
    name = source.choice(list(OPS))
    arguments = OPS[name](source)
    for spoiled in source.sample(list(arguments), source.choice((1, 1, 2))):
        try:
            arguments[spoiled] = wrong(arguments[spoiled], source)
        except RuntimeError:  # a tensor that torch itself refuses to make
            continue
    try:
        getattr(torch.ops.fastguide, name)(**arguments)
    except Exception as error:
        return f"refused: {type(error).__name__}"
    return "computed"


def main() -> None:
    """See the module."""
    seed, first, count = (int(text) for text in sys.argv[1:4])
    if len(sys.argv) > 4:
        specification = importlib.util.spec_from_file_location("fastguide._C", sys.argv[4])
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        sys.modules["fastguide._C"] = module
    torch.set_num_threads(1)
    import fastguide.ops  # noqa: F401 (registers the ops)

    outcomes: Counter[str] = Counter()
    for number, source in draw(seed, range(first, first + count)):
        print(number, file=sys.stderr, flush=True)
        outcomes[call(source)] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
