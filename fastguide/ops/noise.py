"""Normal noise by (seed, evaluation, element): csrc/philox.h."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral

import torch
from torch import Tensor

from fastguide._C import build_info
from fastguide.common.checks import check_int, shown

_STREAM = 2**32 - 1  # evaluations are counted in 32 bits; 0 is the start


def check_seed(seed: object, name: str = "seed", verb: str = "is") -> None:
    """Raise unless `seed` is an int in [0, 2^63)."""
    wanted = "but a seed should be an int in [0, 2^63)"
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"{name} {verb} {shown(seed)}, {wanted}")
    if not 0 <= int(seed) < 2**63:
        raise ValueError(f"{name} {verb} {shown(seed)}, {wanted}")


def as_seeds(
    seeds: int | Iterable[int] | Tensor, device: torch.device | str = "cpu", look: bool = True
) -> Tensor:
    """`seeds` as an int64 tensor `[B]`, one or more; each should lie in [0, 2^63). Those of a
    tensor are looked up with `look`, unless it is on a GPU, which would have to be waited for.
    """
    if hasattr(seeds, "tolist") and not isinstance(seeds, Tensor):
        seeds = seeds.tolist()  # an array
    if isinstance(seeds, Tensor):
        if seeds.ndim == 0 and not seeds.is_floating_point():
            seeds = seeds.reshape(1)
        if seeds.dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
            seeds = seeds.long()
        if seeds.ndim != 1 or seeds.dtype != torch.int64:
            raise ValueError(
                f"seeds is {seeds.dtype} of shape {tuple(seeds.shape)}, but it should be int64 [B]"
            )
        if not len(seeds):
            raise ValueError("seeds is empty, but there should be one seed per sample")
        if look and seeds.device.type == "cpu" and bool((seeds < 0).any()):
            check_seed(int(seeds[seeds < 0][0]), "seeds", "has")
        return seeds.to(device).contiguous()
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, (Integral, Iterable)):
        raise TypeError(f"seeds is {shown(seeds)}, but it should be an int, ints or int64 [B]")
    values = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    if not values:
        raise ValueError("seeds is empty, but there should be one seed per sample")
    for value in values:
        check_seed(value, "seeds", "has")
    return torch.tensor([int(value) for value in values], dtype=torch.int64, device=device)


def noise(
    seeds: int | Iterable[int] | Tensor,
    shape: Sequence[int],
    evaluation: int | Tensor = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal noise, fp32 `[B, *shape]`, sample i from `seeds[i]` alone.

    The value of an element depends on (seed, evaluation, its index in the sample) and on nothing
    else: not on the batch, the rank of `shape`, or the device (Philox4x32-10 and Box-Muller).
    `evaluation` 0 is the start of a sample; the k-th update of a run, k = 1, 2, ..., draws k. An
    int64 tensor of one element, or `[B]`, one for each sample, is read on the device.
    """
    if device is None:
        device = seeds.device if isinstance(seeds, Tensor) else "cpu"
    if not isinstance(shape, Sequence) or isinstance(shape, (str, bytes)):
        raise TypeError(f"shape is {shown(shape)}, but it should be the sides of a sample")
    for i, side in enumerate(shape):
        check_int(f"shape[{i}]", side)
    counter = evaluation if isinstance(evaluation, Tensor) else None
    if counter is not None:
        evaluation = 0
    elif not 0 <= evaluation <= _STREAM:
        raise ValueError(f"evaluation is {evaluation}, but it should lie in [0, 2^32)")
    if torch.device(device).type == "cuda" and build_info()["cuda"] is None:
        raise RuntimeError(
            f"device is {device}, but fastguide was built without CUDA kernels; "
            "`fastguide info` says how to get them"
        )
    rows = as_seeds(seeds, device, look=False)  # a run draws with tensors that it has looked at
    if counter is not None:
        _check_counter(counter, rows)
    return torch.ops.fastguide.noise(rows, evaluation, math.prod(shape), counter).reshape(
        -1, *shape
    )


def _check_counter(counter: Tensor, seeds: Tensor) -> None:
    fits = counter.numel() == 1 or counter.shape == seeds.shape
    if not fits or counter.dtype != torch.int64 or counter.device != seeds.device:
        raise ValueError(
            f"evaluation is {counter.dtype} of shape {tuple(counter.shape)} on {counter.device}, "
            f"but a tensor should be one int64, or int64 [{len(seeds)}], on {seeds.device}"
        )


def derive_seeds(seeds: Tensor, evaluation: int | Tensor) -> Tensor:
    """Other seeds int64 `[B]`, each from (seed, evaluation) alone, for what is drawn beside the
    noise of the update (SplitMix64's finaliser; Steele et al. 2014). The evaluation is an int, or
    an int64 tensor of one element or `[B]`.
    """

    def shifted(z: Tensor, bits: int) -> Tensor:
        return z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))

    golden = 0x9E3779B97F4A7C15
    if isinstance(evaluation, Tensor):  # the same sum, as int64 wraps around
        z = seeds + (evaluation + 1) * _signed(golden)
    else:
        z = seeds + _signed((evaluation + 1) * golden)
    z = shifted(z, 30) * _signed(0xBF58476D1CE4E5B9)
    z = shifted(z, 27) * _signed(0x94D049BB133111EB)
    return shifted(z, 31) & (2**63 - 1)


def _signed(word: int) -> int:
    word &= 2**64 - 1
    return word - 2**64 if word >= 2**63 else word


@torch.library.register_fake("fastguide::noise")
def _noise_fake(
    seeds: Tensor, evaluation: int, numel: int, counter: Tensor | None = None
) -> Tensor:
    return seeds.new_empty((seeds.shape[0], numel), dtype=torch.float32)
