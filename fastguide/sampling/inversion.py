"""From images to the noise that a run makes them from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastguide.common.arrays import as_tensor
from fastguide.engine.plan import start_std
from fastguide.engine.run import Inputs
from fastguide.sampling.finite import check_finite
from fastguide.sampling.inputs import bind_all
from fastguide.sampling.known import as_image
from fastguide.sampling.planning import Planned
from fastguide.sampling.running import Runner


def inverted(
    runner: Runner, planned: Planned, images: Tensor, cond: Any = None, negative: Any = None
) -> Tensor:
    """`noise` fp32 `[B, *shape]` of a call of `planned` that gives `images` `[B, *shape]`.

    The run goes up the same levels, each step by the solver's own map from the lower level. Where
    the levels end at the data it starts at the last level that has noise, with x / alpha as the
    image has it: the flow moves that by O(sigma^2), as the run's last step down does.

    Raises:
        ValueError: images are not as above, or the solver draws noise.
    """
    images = as_tensor(images)
    if not isinstance(images, Tensor) or images.ndim != len(planned.setup.settings.shape) + 1:
        found = tuple(images.shape) if isinstance(images, Tensor) else repr(images)
        raise ValueError(f"images is {found}, but it should be a tensor [B, *shape]")
    if any(row.draws for row in planned.plan.rows[1:]):
        raise ValueError(
            f"solver is {planned.course.solver}, which draws noise, but an inversion needs a "
            "deterministic one, such as fastguide.ddim or fastguide.heun"
        )
    batch = len(images)
    image = as_image(planned, "images", images, batch)
    up = planned.upward
    end = planned.plan.levels.points[-1]
    given = image if end.sigma == 0.0 else image / end.alpha  # the plan's start multiplies by it
    seeds = torch.zeros(batch, dtype=torch.int64, device=image.device)
    inputs = Inputs(bind_all(up, cond, negative, batch), seeds, init=given)
    x, first_bad, bad_gradient = runner.run(up, inputs)
    check_finite(up.plan, x, first_bad, bad_gradient, seeds)
    top = planned.plan.levels.points[0]
    if planned.plan.from_image:
        return (x - top.alpha * image) / top.sigma
    return x / start_std(planned.plan.levels)
