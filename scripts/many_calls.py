"""Whether calls of a guided pipeline leave memory behind: `python scripts/many_calls.py 500`.

Calls of other scales, steps, callbacks, schedulers and hooks on a tiny pipeline; it prints how many
tensors there are and how much memory the process has, and fails where tensors are left.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))

import diffusers
import torch
from pipeline_actions import halved
from tiny_pipelines import SD_NOISE, sd_call, sd_pipe

import fastguide as fg

PAGE = 4096


def tensors() -> int:
    """How many are alive."""
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


def resident() -> float:
    """Memory of the process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def main() -> None:
    """Call, count, judge."""
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    pipe = sd_pipe()
    guided = fg.guide(pipe, fg.PAG(2.0))
    schedulers = [pipe.scheduler, diffusers.KDPM2DiscreteScheduler(**SD_NOISE)]

    def call(number: int) -> None:
        guided.scheduler = schedulers[number % 7 == 3]
        more = {"callback_on_step_end": lambda *given: given[-1]} if number % 5 == 0 else {}
        hook = pipe.unet.mid_block.register_forward_hook(halved) if number % 3 == 0 else None
        scale, steps = 1.0 + number % 40, 1 + number % 3
        guided(**sd_call(guidance_scale=scale, num_inference_steps=steps, **more))
        if hook is not None:
            hook.remove()

    warm = min(60, calls // 2)
    for number in range(warm):
        call(number)
    before, memory = tensors(), resident()
    for number in range(warm, calls):
        call(number)
    after = tensors()
    print(f"after {warm} calls: {before} tensors, {memory:.1f} MiB")
    print(f"after {calls} calls: {after} tensors, {resident():.1f} MiB")
    if after > before + 8:
        raise SystemExit("calls leave tensors behind")


if __name__ == "__main__":
    main()
