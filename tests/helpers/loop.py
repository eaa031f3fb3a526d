"""A sampler's loop alone, with nothing before or after it that may wait for the device."""

import torch

from fastguide.engine.run import Inputs, run


def loop_of(sampler, cond, seeds, noise):
    """`loop()`: the samples of `sampler(cond, seeds, noise=noise)`; all inputs on its device."""
    inputs = Inputs(sampler._bind(cond, None, len(seeds)), seeds, noise)
    passes = sampler._passes[sampler._mode(len(seeds))]

    @torch.no_grad()
    def loop():
        return run(
            sampler.plan, passes, inputs, sampler.shape, sampler.dtype, sampler.model.outputs
        )[0]

    return loop
