"""A sampler's requests: made at once, run in batches by a packer, their results handed out."""

from __future__ import annotations

import weakref
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastguide.common.checks import check_number
from fastguide.engine.run import Inputs
from fastguide.guidance.base import Guidance
from fastguide.ops.noise import check_seed
from fastguide.sampling.finite import NonFiniteError, check_finite
from fastguide.sampling.inputs import bind_all
from fastguide.sampling.planning import Planned
from fastguide.sampling.running import Runner
from fastguide.serving.packer import Packer
from fastguide.serving.requests import Request, amounts_of, packed


class Requests:
    """Whole runs of single samples, packed into batches.

    Args:
        batch, wait: as `Packer` takes them.
    """

    def __init__(self, planned: Planned, runner: Runner, batch: int, wait: float) -> None:
        self.planned, self.runner = planned, runner
        self.packer = Packer(batch, wait)
        # the packer's thread refers to nothing here, so that it ends with the last reference
        weakref.finalize(self, self.packer.stop).atexit = False

    def submit(
        self,
        cond: Any,
        seed: int,
        guidance: Guidance | None,
        negative: Any,
        timeout: float | None,
    ) -> Future[Tensor]:
        """See `fastguide.Sampler.submit`."""
        planned = self.planned
        check_seed(seed)
        if timeout is not None:
            check_number("timeout", timeout, 0.0)
        if guidance is None and planned.plan.batch is not None:
            raise ValueError(
                f"guidance of the sampler holds values for {planned.plan.batch} samples, but a "
                "request is one: give it a guidance of its own"
            )
        other = planned.course.guidance if guidance is None else guidance
        weights, nag = amounts_of(planned.plan, other, planned.setup.choose)
        with torch.inference_mode(False), torch.no_grad():
            conditions = bind_all(planned, cond, negative, 1)
        return self.packer.put(Request(seed, conditions, weights, nag, self._run, timeout))

    def close(self, timeout: float | None = None) -> None:
        """Finish what was taken, and take no more; see `Packer.close`."""
        self.packer.close(timeout)

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
                request.fail(error)
            else:
                request.succeed(one[0].clone())
