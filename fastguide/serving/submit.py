"""A sampler's requests: made at once, run in batches by a packer, their results handed out."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastguide import ops
from fastguide.engine.run import Inputs
from fastguide.guidance.base import Guidance
from fastguide.sampling.finite import NonFiniteError, check_finite
from fastguide.sampling.inputs import bind_all
from fastguide.sampling.planning import Planned
from fastguide.sampling.running import Runner
from fastguide.serving.requests import Packer, Request, amounts_of, packed


class Requests:
    """Whole runs of single samples, packed into batches.

    Args:
        batch, wait: as `Packer` takes them.
    """

    def __init__(self, planned: Planned, runner: Runner, batch: int, wait: float) -> None:
        self.planned, self.runner = planned, runner
        self.packer = Packer(self._run, batch, wait)

    def put(self, request: Request) -> Future[Tensor]:
        """Queue a request of `make_request`; RuntimeError where it was closed."""
        return self.packer.put(request)

    def close(self) -> None:
        """Finish what was taken, and take no more."""
        self.packer.close()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _run(self, requests: list[Request]) -> None:
        """One batch of requests; a sample that is not finite fails alone."""
        plan, conditions, seeds = packed(requests, self.planned.plan)
        drawn = self.planned.drawn(conditions.fixed[None]["cond"])
        inputs = Inputs(replace(conditions, drawn=drawn), seeds)
        samples, first_bad, bad_gradient = self.runner.run(self.planned, inputs, plan)
        for i, request in enumerate(requests):
            one = samples[i : i + 1]
            try:
                check_finite(plan, one, first_bad[i : i + 1], bad_gradient, seeds[i : i + 1])
            except NonFiniteError as error:
                request.future.set_exception(error)
            else:
                request.future.set_result(one[0].clone())


def make_request(
    planned: Planned, cond: Any, seed: int, guidance: Guidance | None, negative: Any
) -> Request:
    """A request, checked and bound; the arguments are those of `fastguide.Sampler.submit`.

    Raises:
        ValueError: an argument that is not as it should be.
    """
    ops.as_seeds(seed, planned.setup.device)
    if guidance is None and planned.plan.batch is not None:
        raise ValueError(
            f"guidance of the sampler holds values for {planned.plan.batch} samples, but a "
            "request is one: give it a guidance of its own"
        )
    other = planned.course.guidance if guidance is None else guidance
    weights, nag = amounts_of(planned.plan, other, planned.setup.choose)
    with torch.inference_mode(False), torch.no_grad():
        return Request(int(seed), bind_all(planned, cond, negative, 1), weights, nag)
