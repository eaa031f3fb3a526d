"""The log-likelihood of images under a model, by the change of variables along its flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastguide import ops
from fastguide.common.checks import check_int, check_name, check_number
from fastguide.engine.plan import start_std
from fastguide.guidance.base import Guidance
from fastguide.model import Model
from fastguide.sampling.adaptive import angle_of, ends, flow
from fastguide.sampling.field import Field
from fastguide.sampling.integrate import State, rk45
from fastguide.sampling.setup import set_up
from fastguide.spacing import Levels

Trace = Literal["hutchinson", "exact"]
MANY = 256  # dimensions from which the exact trace is refused


@torch.inference_mode(False)
@torch.no_grad()
def log_likelihood(
    model: Model,
    images: Tensor,
    cond: Any = None,
    guidance: Guidance | None = None,
    *,
    trace: Trace = "hutchinson",
    probes: int = 1,
    seed: int = 0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    negative: Any = None,
    levels: Levels | None = None,
    bins: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Bits per dimension fp64 `[B]` of images `[B, *shape]`: `-log2 p(images) / D` (Song et al.
    2021, appendix D.2).

    The probability flow takes the images from the least noisy level up to the noisiest, where x is
    normal with the standard deviation that runs start with; on the way log p changes by the
    integral of the divergence of the flow. p is the density of images with the little noise of that
    first level.

    Args:
        trace: of the Jacobian: "exact", by D products; or "hutchinson", the mean over `probes`
            random signs e of `e^T J e`, which is unbiased.
        probes, seed: of the random signs; sample i has those of `seed` + i, the same all along.
        rtol, atol: tolerances of a step, as for `fastguide.ode`.
        levels: as for `fastguide.ode`.
        bins: of images in [-1, 1] that were made from as many integers: log2(bins / 2) is added,
            the density of integers; they should have been dequantised, by noise of their width.
        cond, negative: of the images. `guidance` makes p that of the guided flow.

    Raises:
        ValueError: an argument that is not as above.
    """
    check_name("trace", trace, get_args(Trace))
    check_int("probes", probes)
    for name, value in (("rtol", rtol), ("atol", atol)):
        check_number(name, value, 0.0, open_=True)
    setup = set_up(model, None, device, torch.float32)
    sides = setup.settings.shape
    if not isinstance(images, Tensor) or tuple(images.shape[1:]) != sides or not len(images):
        found = tuple(images.shape) if isinstance(images, Tensor) else repr(images)
        raise ValueError(f"images is {found}, but it should be a tensor [B, *{sides}]")
    size = math.prod(sides)
    if trace == "exact" and size > MANY:
        raise ValueError(f"trace is 'exact', but images have {size} dimensions, more than {MANY}")
    first, last, asked = ends(model.process, levels)
    x = images.to(setup.device, torch.float32)
    numbers = ops.as_seeds(range(seed, seed + len(x)), setup.device)
    field = Field(setup, guidance, None, cond, negative, numbers, grad=True)
    signs = _signs(numbers, sides, size, trace, probes)
    slope = _with_divergence(flow(field, model.process), signs, trace == "exact")
    low, high = angle_of(last), angle_of(first)
    z = x * (last.alpha / math.hypot(last.alpha, last.sigma))
    total = torch.zeros(len(x), 1, dtype=torch.float64, device=setup.device)
    (z, total), *_ = rk45(slope, (z, total), low, high, rtol, atol)
    std = start_std(asked) / math.hypot(first.alpha, first.sigma)
    square = (z.double() / std).flatten(1).square().sum(1)
    normal = -0.5 * square - size * (0.5 * math.log(2.0 * math.pi) + math.log(std))
    log_p = normal + total[:, 0] + size * math.log(math.cos(low))  # z is cos(low) times the image
    bits = -log_p / (size * math.log(2.0))
    return bits if bins is None else bits + math.log2(bins / 2.0)


def _signs(
    seeds: Tensor, sides: tuple[int, ...], size: int, trace: str, probes: int
) -> list[Tensor]:
    """What the Jacobian is multiplied by: unit vectors, or random signs."""
    if trace == "exact":
        units = torch.eye(size, device=seeds.device).reshape(size, 1, *sides)
        return [unit.expand(len(seeds), *sides) for unit in units]
    draws = (ops.noise(seeds, sides, number) for number in range(1, probes + 1))
    return [torch.where(draw < 0.0, -1.0, 1.0) for draw in draws]


def _with_divergence(
    slope: Callable[[float, Tensor], Tensor], signs: list[Tensor], exact: bool
) -> Callable[[float, State], State]:
    def both(angle: float, state: State) -> State:
        with torch.enable_grad():
            z = state[0].detach().requires_grad_()
            moved = slope(angle, z)
            if not moved.requires_grad:
                raise ValueError("the likelihood differentiates the network, but it has no graph")
            trace = torch.zeros_like(state[1])
            for i, sign in enumerate(signs):
                keep = i + 1 < len(signs)
                (product,) = torch.autograd.grad(moved, z, sign, retain_graph=keep)
                trace = trace + (product * sign).double().flatten(1).sum(1, keepdim=True)
        return moved.detach(), trace if exact else trace / len(signs)

    return both
