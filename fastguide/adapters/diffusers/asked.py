"""The evaluations of a loop that tells nothing but its step and its time, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastguide.adapters.diffusers.by_blocks import whole
from fastguide.adapters.diffusers.network import Call, class_name
from fastguide.adapters.diffusers.programs import Stepwise
from fastguide.adapters.diffusers.whole import Whole, computes_in
from fastguide.engine.evaluate import Combination, Evaluate, Kept
from fastguide.engine.norm import combined
from fastguide.engine.passes import Conditions, make_passes
from fastguide.engine.pattern import no_layers
from fastguide.engine.plan import Plan, make_plan
from fastguide.guidance.base import POSITIVE, Branch, Guidance
from fastguide.ops.table import Column
from fastguide.process import VP, Flow, Level, Prediction, Process, data_level
from fastguide.solvers import ddim
from fastguide.spacing import Levels
from fastguide.staging.contract import Staged, choose_layers
from fastguide.staging.perturbation import Layers

NEGATIVE = Branch("negative")


class Asked:
    """A guidance in such a loop.

    Args:
        prediction: what its network predicts.
    """

    def __init__(self, guidance: Guidance, prediction: Prediction) -> None:
        self.guidance, self.prediction = guidance, prediction
        self.process: Process = Flow() if prediction.name == "flow" else VP("scaled_linear")
        terms = (*guidance.terms(), *(one.term for one in guidance.inside()))
        bad = [t for t in terms if t.branch.net is not None or t.branch.potential is not None]
        if bad or any(t.branch.cond == "random" or t.branch.degraded for t in terms):
            raise ValueError(
                f"guidance is {guidance!r}, but a guider has neither other networks, gradients, "
                "random conditions nor second inputs"
            )
        self.needs_negative = any(t.branch.cond == "negative" for t in terms)
        self.times: dict[int, float] = {}  # of the steps so far
        self.kept: Kept | None = None
        self.nets: dict[int, tuple[nn.Module, Whole]] = {}

    def step(self, number: int, count: int, time: float, on: bool) -> Step:
        """Step `number` of `count`, at the scheduler's `time`; the first of a run where it is no
        later than the last.
        """
        if number <= max(self.times, default=number):
            self.times, self.kept = {}, None
        self.times[number] = time
        return Step(self, number, count, on)

    def levels(self, count: int) -> Levels:
        """Of all steps: those so far, and for the others any of falling noise."""
        known, most = dict(self.times), 1000.0 if isinstance(self.process, Flow) else 999.0
        first, last = min(known), max(known)
        for number in range(first):  # another guider's
            known[number] = most - (most - known[first]) * number / first
        for number in range(last + 1, count):
            known[number] = known[last] * (count - number) / (count - last)
        scale = 1000.0 if isinstance(self.process, Flow) else 1.0
        found = [self._level(known[number] / scale) for number in range(count)]
        return Levels(self.process, (*found, data_level()))

    def _level(self, time: float) -> Level:
        return self.process.level(min(time, 1.0) if isinstance(self.process, Flow) else time)

    def net(self, denoiser: nn.Module) -> Whole:
        """The network in our contract, called with the loop's own times and signs."""
        known = self.nets.get(id(denoiser))
        if known is None or known[0] is not denoiser:
            made = whole(denoiser, 1.0, f"a {class_name(denoiser)} is called by a loop of its own")
            made.told = replace(made.told, backwards=False, negated=False)
            known = self.nets[id(denoiser)] = (denoiser, made)
        return known[1]


@dataclass
class _Called:
    """One call of the loop."""

    call: Call
    out: Any
    prediction: Tensor | None


class Step:
    """One step of it."""

    def __init__(self, asked: Asked, number: int, count: int, on: bool) -> None:
        self.asked, self.number, self.count = asked, number, count
        self.guidance = asked.guidance if on else None
        self.calls: list[_Called] = []
        plan = self._plan(_any_layers)
        pattern, weights = plan.rows[1 + number].pattern, plan.weights[1 + number, :, :2]
        assert pattern is not None
        alone = pattern.branches == (POSITIVE,) and pattern.nag is None
        self.alone = alone and bool((weights == 1.0).all())  # it may be set to 0
        needs = pattern.nag is not None
        self.needs_negative = needs or any(b.cond == "negative" for b in pattern.computed)
        self.plain = not pattern.nag and all(b.how is None for b in pattern.computed)

    def _plan(self, choose: Callable[[Layers], tuple[str, ...]], device: Any = "cpu") -> Plan:
        asked = self.asked
        levels = asked.levels(self.count)
        return make_plan(
            asked.prediction, levels, ddim, self.guidance, device=device, choose=choose
        )

    def stand_around(self, denoiser: Any, last: bool) -> None:
        """Until its next call, which returns the guided prediction where it is the `last`."""
        own = denoiser.__dict__.get("forward")
        forward = denoiser.forward

        def around(*args: Any, **kwargs: Any) -> Any:
            self.leave(denoiser)
            return self._call(denoiser, forward, last, args, kwargs)

        around.fastguide_own = own  # type: ignore[attr-defined]
        denoiser.__dict__["forward"] = around

    def leave(self, denoiser: Any) -> None:
        """Its own forward again."""
        around = denoiser.__dict__.get("forward")
        if not hasattr(around, "fastguide_own"):
            return
        if around.fastguide_own is None:
            del denoiser.__dict__["forward"]
        else:
            denoiser.__dict__["forward"] = around.fastguide_own

    def _call(
        self, denoiser: Any, forward: Callable[..., Any], last: bool, args: Any, kwargs: Any
    ) -> Any:
        if self.alone:
            return forward(*args, **kwargs)
        net = self.asked.net(denoiser)
        call = net.gather(args, kwargs)
        out, prediction = None, None
        if self.plain or not last:
            out = forward(*args, **kwargs)
            prediction = net.answer(_first(out), call.x.shape[1])
        self.calls.append(_Called(call, out, prediction))
        if not last:
            return out
        guided, like = self._guided(net, kwargs, args), out
        calls, self.calls = self.calls, []
        guided = guided.to(calls[0].call.x.dtype)
        tokens = calls[-1].call.varying.get("other images' tokens")
        if tokens is not None:
            guided = torch.cat([guided, torch.zeros_like(tokens)], 1)
        shaped = net.as_returned(guided)
        if like is None:
            like = calls[0].out if calls[0].out is not None else (shaped,)
        return _like(shaped, like)

    def _guided(self, net: Whole, kwargs: Any, args: Any) -> Tensor:
        """What the guidance makes of the calls."""
        positive, negative = self.calls[0], self.calls[-1] if len(self.calls) > 1 else None
        x = positive.call.x
        known: Any = net if isinstance(net, Staged) else None

        def choose(layers: Layers) -> tuple[str, ...]:
            if known is None:
                return no_layers(layers, net.why_not_staged)
            return choose_layers(layers, known)

        plan = self._plan(choose, x.device)
        row = 1 + self.number
        at, pattern = plan.at(row), plan.rows[row].pattern
        assert pattern is not None
        fixed: dict[Any, Any] = {"cond": _cond(positive)}
        fixed["negative"] = None if negative is None else _cond(negative)
        conditions = Conditions({None: fixed})
        mode = "batched" if conditions.joinable else "sequential"
        passes = {pattern: make_passes(pattern, {None: net}, mode)}  # type: ignore[arg-type]
        seeds = torch.arange(x.shape[0], device=x.device)
        time = kwargs.get(net.time)
        if time is None:
            time = args[net.arguments.index(net.time)]
        table = time.flatten()[:1].float().expand(len(plan.rows))
        if time.ndim > 1:
            raise ValueError(f"timestep is {tuple(time.shape)}, but a guider needs one a sample")
        known_of = (conditions, seeds, computes_in(net.net), net.outputs, None)
        predict = Stepwise(plan, passes, *known_of, times={None: table})
        predict.given = {
            branch: one.prediction
            for branch, one in ((POSITIVE, positive), (NEGATIVE, negative))
            if one is not None and one.prediction is not None
        }
        evaluate = Evaluate(predict, self._kept_for(plan))
        state = x.float()
        copies = passes[pattern].inputs
        inputs = x.to(predict.dtype).repeat(copies, *[1] * (x.ndim - 1))
        found = evaluate(at, pattern, inputs, state)
        self.asked.kept = dict(evaluate.kept)
        return _sum(found, at.table, row, state)

    def _kept_for(self, plan: Plan) -> Kept | None:
        """What earlier steps left, but their weights."""
        kept = self.asked.kept
        if kept is None:
            return None
        found = {key: value for key, value in kept.items() if key[0] != "weights"}
        if plan.rewrites:
            batch = next((v.shape[1] for k, v in kept.items() if k[0] == "weights"), None)
            found["weights", POSITIVE, ""] = plan.weights.expand(-1, batch or 1, -1).clone()
        return found


def _any_layers(layers: Layers) -> tuple[str, ...]:
    return tuple(str(layer) for layer in layers)


def _first(out: Any) -> Any:
    return out if isinstance(out, Tensor) else out[0]


def _cond(one: _Called) -> Any:
    found = {**(one.call.fixed or {}), **one.call.varying}
    return found or None


def _sum(found: Combination, table: Tensor, row: int, state: Tensor) -> Tensor:
    """The guided prediction."""
    base = table[Column.OF_X] / table[Column.OF_PREDICTION]
    assert found.weights is not None
    weights = found.weights[row]
    known = (found.deltas, found.factor, found.factored)
    return combined(found.branches, weights, *known, 0, base * state)[0]


def _like(guided: Any, out: Any) -> Any:
    """The network's output with the guided prediction in its first place."""
    if isinstance(out, tuple):
        return (guided, *out[1:])
    if isinstance(out, Tensor):
        return guided
    return type(out)(**{**dict(out), next(iter(out.keys())): guided})
