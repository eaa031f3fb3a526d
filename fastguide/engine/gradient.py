"""Gradients: REG's factor, its chain rule, and those of potentials."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fastguide.engine.plan import Fact
from fastguide.guidance.potential import Potential
from fastguide.ops.table import Column
from fastguide.staging.contract import is_compiled


def differentiable(net: Any) -> Any:
    """`net` for gradients with respect to its input alone: one that shares its parameters, which
    ask for none, so that nothing is kept for theirs.

    Raises:
        ValueError: it is known not to be differentiable.
    """
    if not isinstance(net, nn.Module):
        return net
    for name, module in net.named_modules():
        if ".quantized" in type(module).__module__ and "torch" in type(module).__module__:
            raise ValueError(
                f"guidance differentiates the network, but its {name or 'whole'} is a quantised "
                f"{type(module).__name__}, which has no gradient"
            )
    tensors = [*net.parameters(), *net.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        raise ValueError(
            "guidance differentiates the network, but its parameters are inference tensors: make "
            "or load it outside torch.inference_mode()"
        )
    if is_compiled(net) or not any(parameter.requires_grad for parameter in net.parameters()):
        return net
    shared: dict[int, Any] = {id(tensor): tensor for tensor in net.buffers()}
    for parameter in net.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(net, shared)


class Graph:
    """The graph of one evaluation's positive rows, until it is `released`.

    Args:
        facts, row: this evaluation's of the plan.
        channels: of the prediction, the first part of the network's output.
    """

    def __init__(self, facts: Tensor, row: Tensor, channels: int) -> None:
        self.facts, self.row, self.channels = facts, row, channels
        self.leaf: Tensor | None = None
        self.prediction: Tensor | None = None

    def take(self, leaf: Tensor, output: Tensor) -> None:
        """Keep the network's input and its output.

        Raises:
            ValueError: the output is no differentiable function of the input.
        """
        if not output.requires_grad:
            raise ValueError(
                "guidance differentiates the network, but its output has no gradient with respect "
                "to x: it is quantised, runs without a graph, or detaches its input"
            )
        self.leaf, self.prediction = leaf, output[:, : self.channels]

    def release(self) -> None:
        """Free the graph."""
        self.leaf = self.prediction = None

    def product(self, cotangent: Tensor | None, keep: bool = True) -> Tensor:
        """`d <x0_hat, cotangent> / dx` fp32 `[B, *shape]`, for None a cotangent of ones; the graph
        can be used again where it is to `keep`.
        """
        assert self.leaf is not None
        assert self.prediction is not None
        ones = torch.ones_like(self.prediction)
        outward = ones if cotangent is None else cotangent.to(self.prediction.dtype)
        try:
            (found,) = torch.autograd.grad(self.prediction, self.leaf, outward, keep)
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"guidance differentiates the network, but that is not possible: {error}"
            ) from error
        through = self.row[Column.OF_PREDICTION] * self.facts[Fact.INPUT_SCALE]
        direct = self.row[Column.OF_X]
        if cotangent is not None:
            direct = direct * cotangent.float()
        return direct + through * found.float()


def reg_factor(facts: Tensor, product: Tensor) -> Tensor:
    """REG's factor `alpha d(1^T x0_hat) / dx`, contiguous."""
    return (facts[Fact.ALPHA] * product).contiguous()


def difference_factor(
    facts: Tensor, row: Tensor, moved: Tensor, prediction: Tensor, h: Tensor
) -> Tensor:
    """REG's factor from the prediction at `x + h`: `alpha (a + b (p(x + h) - p(x)) / h)`."""
    slope = (moved.float() - prediction.float()) / h
    through = row[Column.OF_X] + row[Column.OF_PREDICTION] * slope
    return (facts[Fact.ALPHA] * through).contiguous()


def potential_gradient(
    potential: Potential,
    inputs: Tensor,
    t: Tensor,
    target: object,
    x: Tensor,
    prediction: Tensor,
    facts: Tensor,
    row: Tensor,
    graph: Graph | None,
) -> Tensor:
    """`d value / dx` fp32 `[B, *shape]`.

    Args:
        inputs, t: what the network gets, `[B, *shape]` and `[B]`.
        x: fp32, unscaled.
        prediction: the positive one.
        graph: for potentials of the denoised image.

    Raises:
        ValueError: the value is not one differentiable scalar per sample.
    """
    through_net = potential.of == "denoised"
    with torch.enable_grad():
        if through_net:
            clean = row[Column.OF_X] * x + row[Column.OF_PREDICTION] * prediction.float()
            leaf = clean.detach().requires_grad_()
            t = torch.zeros_like(t)
        else:
            leaf = inputs.detach().requires_grad_()
        value = potential.value(leaf, t, target)
        if not value.requires_grad:
            raise ValueError(
                f"{potential.name} returned values without a gradient with respect to x, but "
                "guidance by it needs one"
            )
        (found,) = torch.autograd.grad(value.sum(), leaf)
    if not through_net:
        return facts[Fact.INPUT_SCALE] * found.float()
    assert graph is not None
    return graph.product(found)
