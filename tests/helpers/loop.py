"""A sampler's loop alone, with nothing before or after it that may wait for the device."""

import torch

from fastguide.engine.run import run
from fastguide.sampling.inputs import make_inputs


def loop_of(sampler, cond, seeds, noise):
    """`loop()`: the samples of `sampler(cond, seeds, noise=noise)`; all inputs on its device."""
    planned = sampler._planned
    inputs = make_inputs(planned, cond, None, seeds, noise)
    passes = planned.passes[sampler._runner.mode(len(seeds))]

    @torch.no_grad()
    def loop():
        return run(planned.plan, passes, inputs, *planned.setup.settings)[0]

    return loop
