"""A guided pipeline is a pipeline: its parts, its call's arguments, threads, errors, memory."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

import fastguide as fg

diffusers = pytest.importorskip("diffusers")

from pipeline_actions import halved, name_of  # noqa: E402
from tiny_diffusers import rand, sd  # noqa: E402
from tiny_pipelines import (  # noqa: E402
    PIPES,
    SD_NOISE,
    flux_call,
    flux_pipe,
    result,
    sd_call,
    sd_pipe,
)

LIMIT = 1e-4


def check(got, want, limit=LIMIT):
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= limit, error


# What it holds


@pytest.mark.parametrize("family", ["sd", "flux", "pixart"])
def test_it_holds_the_original_components(family):
    make, call, _ = PIPES[family]
    pipe = make()
    name = name_of(pipe)
    pipe(**call())  # a pipeline marks its network itself
    before = {n: list(m.__dict__) for n, m in getattr(pipe, name).named_modules()}
    guided = fg.guide(pipe)
    guided(**call())
    assert all(guided.components[n] is part for n, part in pipe.components.items())
    assert type(guided).__name__ == type(pipe).__name__
    assert isinstance(guided, type(pipe))
    assert guided.scheduler is pipe.scheduler
    after = {n: list(m.__dict__) for n, m in getattr(pipe, name).named_modules()}
    assert before == after
    assert list(guided.unet.state_dict() if name == "unet" else guided.transformer.state_dict())
    assert fg.accelerate is fg.guide


def test_nothing_of_a_run_stays_on_the_network():
    """Flux pipelines enter a cache context, whose registry keeps the module that it is of."""
    pipe = flux_pipe()
    fg.guide(pipe)(**flux_call(true_cfg_scale=4.0))
    assert pipe.transformer._diffusers_hook._module_ref is pipe.transformer
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    want = result(pipe(**flux_call(true_cfg_scale=4.0)))
    check(result(fg.guide(pipe)(**flux_call(true_cfg_scale=4.0))), want)


def test_what_a_call_leaves_is_readable():
    guided = fg.guide(sd_pipe())
    guided(**sd_call(num_inference_steps=3, guidance_scale=6.0))
    assert guided.num_timesteps == 3
    assert guided.guidance_scale == 6.0


def test_a_callback_sees_the_originals():
    pipe, seen = sd_pipe(), []

    def look(view, step, timestep, kwargs):
        seen.append(view.components["unet"] is pipe.unet)
        seen.append(isinstance(view.unet, diffusers.UNet2DConditionModel))
        seen.append(isinstance(view.scheduler, diffusers.DDIMScheduler))
        seen.append(view.unet.config is pipe.unet.config or view.unet.config == pipe.unet.config)
        seen.append(view.guidance_scale == 4.0)
        other = diffusers.StableDiffusionPipeline(**view.components, requires_safety_checker=False)
        seen.append(other.unet is pipe.unet)
        return kwargs

    fg.guide(pipe)(**sd_call(guidance_scale=4.0, callback_on_step_end=look))
    assert len(seen) == 4 * 6
    assert all(seen)


@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_a_callback_may_not_replace_what_runs(name):
    pipe = sd_pipe()

    def replace(view, step, timestep, kwargs):
        setattr(view, name, getattr(pipe, name))
        return kwargs

    with pytest.raises(ValueError, match=f"a callback replaces {name} while"):
        fg.guide(pipe)(**sd_call(callback_on_step_end=replace))


def test_interrupts_from_outside():
    pipe = sd_pipe()
    guided, steps = fg.guide(pipe), []

    def stop(view, step, timestep, kwargs):
        steps.append(step)
        guided._interrupt = step == 1
        return kwargs

    guided(**sd_call(callback_on_step_end=stop))
    assert steps == [0, 1]


# The call's arguments


def test_the_calls_scale_is_added_to_another_guidance():
    pipe = sd_pipe()
    want = result(fg.guide(pipe, fg.CFG(5.0) + fg.PAG(3.0))(**sd_call()))
    got = result(fg.guide(pipe, fg.PAG(3.0))(**sd_call(guidance_scale=5.0)))
    assert torch.equal(got, want)
    alone = result(fg.guide(pipe, fg.PAG(3.0))(**sd_call()))
    assert torch.equal(alone, result(fg.guide(pipe, fg.PAG(3.0))(**sd_call(guidance_scale=1.0))))
    assert (alone - want).abs().max() > 10 * LIMIT * want.abs().max()


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "HeunDiscreteScheduler", "PNDMScheduler"])
def test_a_scale_for_each_step(scheduler):
    more = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    pipe = sd_pipe(getattr(diffusers, scheduler)(**SD_NOISE, **more))
    scales, seen = [7.0, 5.0, 3.0, 2.0], []
    of_evaluation = {
        "DDIMScheduler": scales,
        "HeunDiscreteScheduler": [7.0, 7.0, 5.0, 5.0, 3.0, 3.0, 2.0],
        "PNDMScheduler": [7.0, 7.0, 5.0, 3.0, 2.0],
    }[scheduler]

    def follow(pipe, step, timestep, kwargs):
        pipe._guidance_scale = of_evaluation[min(step + 1, len(of_evaluation) - 1)]
        return kwargs

    def read(pipe, step, timestep, kwargs):
        seen.append(pipe.guidance_scale)
        return kwargs

    want = result(pipe(**sd_call(guidance_scale=7.0, callback_on_step_end=follow)))
    got = fg.guide(pipe)(**sd_call(guidance_scale=scales, callback_on_step_end=read))
    check(result(got), want)
    assert seen[0] == of_evaluation[1]
    with pytest.raises(ValueError, match=r"guidance_scale holds 2 scales, but the run has"):
        fg.guide(pipe)(**sd_call(guidance_scale=[7.0, 5.0]))


def test_a_callbacks_scale_reaches_a_given_guidance():
    """Also one with history: APG's momentum goes on."""
    pipe = sd_pipe()

    def follow(pipe, step, timestep, kwargs):
        pipe._guidance_scale = 4.0  # as it is
        return kwargs

    def change(pipe, step, timestep, kwargs):
        pipe._guidance_scale = 4.0 - step
        return kwargs

    guided = fg.guide(pipe, fg.APG(fg.CFG(4.0), radius=15.0, momentum=-0.5))
    want = result(guided(**sd_call()))
    assert torch.equal(result(guided(**sd_call(callback_on_step_end=follow))), want)
    last = [4.0, 4.0, 3.0, 2.0]
    schedule = fg.guide(pipe, fg.APG(fg.CFG(Values(last)), radius=15.0, momentum=-0.5))
    check(result(guided(**sd_call(callback_on_step_end=change))), result(schedule(**sd_call())))


class Values:
    """A schedule of scales."""

    def __init__(self, values):
        self.all = values

    def values(self, levels):
        return self.all


def test_flux_has_no_cfg_without_a_negative_prompt():
    pipe = flux_pipe()
    call = {n: v for n, v in flux_call(true_cfg_scale=4.0).items() if "negative" not in n}
    want = result(pipe(**{**call, "generator": torch.Generator().manual_seed(0)}))
    check(result(fg.guide(pipe)(**{**call, "generator": torch.Generator().manual_seed(0)})), want)


@pytest.mark.parametrize(
    "guidance",
    [fg.CFG(3.0), fg.TPG(1.0), fg.TSG(2.0), fg.ICG(2.0), fg.CFG(2.0) + fg.SAG(0.7, mask="random")],
    ids=lambda guidance: type(guidance).__name__,
)
def test_a_sample_does_not_depend_on_its_batch(guidance):
    pipe = fg.guide(sd_pipe(), guidance)

    def run(seeds, part):
        call = sd_call(generator=[torch.Generator().manual_seed(seed) for seed in seeds])
        return result(pipe(**call | {n: call[n][part] for n in call if n.endswith("embeds")}))

    both = run((11, 77), slice(None))
    check(both[1:], run((77,), slice(1, 2)))
    other = run((11, 78), slice(None))
    assert torch.equal(other[:1], both[:1]) or (other[:1] - both[:1]).abs().max() < 1e-3
    assert (other[1:] - both[1:]).abs().max() > 0.01


def test_draws_follow_the_generators_state():
    """A generator that has been used draws others; nothing is drawn from it."""
    pipe, start = fg.guide(sd_pipe(), fg.TPG(1.0)), rand(2, 4, 16, 16)
    used = torch.Generator().manual_seed(0)
    torch.rand(1, generator=used)
    first = result(pipe(**sd_call(latents=start)))
    assert torch.equal(first, result(pipe(**sd_call(latents=start))))
    state = used.get_state()
    assert not torch.equal(first, result(pipe(**sd_call(latents=start, generator=used))))
    assert torch.equal(state, used.get_state())


# What is not finite


def test_samples_that_are_not_finite_are_an_error():
    pipe = sd_pipe()

    def spoil(pipe, step, timestep, kwargs):
        if step == 1:
            kwargs["latents"][1] = float("nan")
        return kwargs

    call = {"callback_on_step_end": spoil}
    with pytest.raises(fg.NonFiniteError, match=r"1 of 2 samples .* from evaluation 3 of 4 on"):
        fg.guide(pipe)(**sd_call(**call))
    got = result(fg.guide(pipe, check=False)(**sd_call(**call)))
    assert bool(got[0].isfinite().all())
    assert bool(got[1].isnan().any())


# Errors leave nothing


class Stop(BaseException):
    """As KeyboardInterrupt, which would end the tests where it is not caught."""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("where", ["network", "whole network", "callback", "scheduler"])
def test_an_exception_leaves_nothing(where, error):
    pipe = sd_pipe()
    want = result(pipe(**sd_call(guidance_scale=4.0)))
    guided = fg.guide(pipe)
    good = result(guided(**sd_call(guidance_scale=4.0)))
    state = {n: dict(m.__dict__) for n, m in pipe.unet.named_modules()}

    def fail(*args, **kwargs):
        raise error("stop here")

    fail.__module__ = "diffusers.schedulers"  # as one that is not replaced
    call, undo = sd_call(guidance_scale=4.0), []
    if where == "callback":
        call["callback_on_step_end"] = fail
    elif where == "scheduler":
        kind = type(pipe.scheduler)
        old = kind.set_timesteps
        kind.set_timesteps = fail
        undo.append(lambda: setattr(kind, "set_timesteps", old))
    elif where == "network":
        old_act = pipe.unet.conv_act
        pipe.unet.conv_act = Failing(fail)
        undo.append(lambda: setattr(pipe.unet, "conv_act", old_act))
    else:
        undo.append(pipe.unet.mid_block.register_forward_hook(fail).remove)
    try:
        with pytest.raises(error, match="stop here"):
            guided(**call)
    finally:
        for one in undo:
            one()
    assert torch.equal(result(guided(**sd_call(guidance_scale=4.0))), good)
    assert torch.equal(result(pipe(**sd_call(guidance_scale=4.0))), want)
    assert not guided._fastguide.live
    after = {n: dict(m.__dict__) for n, m in pipe.unet.named_modules()}
    assert list(after) == list(state)
    assert all(list(after[n]) == list(state[n]) for n in after)


class Failing(torch.nn.Module):
    def __init__(self, fail):
        super().__init__()
        self.__dict__["fail"] = fail

    def forward(self, x):
        return self.fail()


# Threads and memory


@pytest.mark.parametrize("hooked", [False, True], ids=["stages", "whole"])
def test_threads(hooked):
    """Eight at once, each with arguments of its own: as alone."""
    pipe = sd_pipe()
    if hooked:
        pipe.unet.mid_block.register_forward_hook(halved)
    guided = fg.guide(pipe)

    def call(number, **more):
        generator = torch.Generator().manual_seed(number)
        return sd_call(
            generator=generator, guidance_scale=2.0 + number, num_inference_steps=3 + number % 3
        )

    want = [result(guided(**call(number))) for number in range(8)]
    check(want[3], result(pipe(**call(3))))
    got: list = [None] * 8

    def one(number):
        for _ in range(2):
            got[number] = result(guided(**call(number)))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def tensors():
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


def test_calls_leave_no_memory():
    """Many calls, of other scales and numbers of steps, hold what one does."""
    pipe = sd_pipe()
    guided, runs = fg.guide(pipe), []

    def call(number):
        def note(view, step, timestep, kwargs):
            runs.append(weakref.ref(view._fastguide.run))
            return kwargs

        more = {"callback_on_step_end": note} if number % 5 == 0 else {}
        guided(**sd_call(guidance_scale=2.0 + number, num_inference_steps=1 + number % 4, **more))

    for number in range(12):
        call(number)
    before = tensors()
    for number in range(12, 72):
        call(number)
    assert tensors() <= before + 2
    assert all(run() is None for run in runs)
    other = weakref.ref(pipe.unet)
    pipe.unet = guided.unet = sd()
    gc.collect()
    assert other() is None


def test_what_is_learned_of_blocks_is_kept(monkeypatch):
    """A network that runs by its modules is probed once for all calls of the same shapes."""
    from fastguide.staging import modules

    probes, old = [], modules.probe
    monkeypatch.setattr(modules, "probe", lambda *args: probes.append(1) or old(*args))
    pipe = sd_pipe()
    pipe.unet.mid_block.register_forward_hook(halved)
    guided = fg.guide(pipe, fg.CFG(4.0) + fg.PAG(2.0))
    first = result(guided(**sd_call(num_inference_steps=2)))
    assert probes
    probes.clear()
    assert torch.equal(first, result(guided(**sd_call(num_inference_steps=2))))
    assert not probes


# Networks that remember their calls


def test_a_cache_of_the_network_counts_its_calls():
    pipe = flux_pipe()
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    with pytest.raises(ValueError, match="a cache is enabled on it"):
        fg.guide(pipe, fg.ICG(2.0))(**flux_call())


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "LMSDiscreteScheduler"])
def test_log_linear_levels(kind):
    if kind == "LMSDiscreteScheduler":
        pipe = sd_pipe(diffusers.LMSDiscreteScheduler(**SD_NOISE))
    else:
        pipe = sd_pipe(diffusers.EulerDiscreteScheduler(interpolation_type="log_linear"))
    want = result(pipe(**sd_call(guidance_scale=5.0)))
    check(result(fg.guide(pipe)(**sd_call(guidance_scale=5.0))), want)
