"""How large a captured run would be: counted on one evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastguide.engine.evaluate import Evaluate
from fastguide.engine.passes import Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.predict import Predict
from fastguide.engine.run import Inputs
from fastguide.staging.contract import uncompiled

# A graph's node takes some kilobytes on the device and microseconds to set up, so that this many
# are some tens of megabytes and a fraction of a second: an estimate, not measured.
WHOLE_NODES = 20_000


class Launches(TorchDispatchMode):
    """Counts the ops that are no views, each about one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def nodes(
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    inputs: Inputs,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    outputs: int,
) -> int:
    """About how many nodes the graph of a whole run has: evaluations times the kernels of the
    largest, which is run once, uncompiled.
    """
    at = plan.at(plan.largest)
    pattern = at.row.pattern
    assert pattern is not None
    batch, device = len(inputs.seeds), inputs.seeds.device
    x = torch.zeros((passes[pattern].inputs * batch, *shape), device=device, dtype=dtype)
    state = torch.zeros((batch, *shape), device=device, dtype=torch.float32)
    with uncompiled(), Launches() as launches:
        known = (inputs.conditions, inputs.seeds, dtype, outputs)
        Evaluate(Predict(plan, passes, *known))(at, pattern, x, state)
    return plan.evaluations * launches.count
