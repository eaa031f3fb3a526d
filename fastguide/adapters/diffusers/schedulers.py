"""A diffusers scheduler in our words: process, prediction, levels and solver.

The levels are the scheduler's own numbers, after its `set_timesteps`: whatever its flags make of
them (Karras sigmas, shifts, spacings, terminal SNR) is what we run.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fastguide.adapters.diffusers.solvers import lcm, tcd
from fastguide.engine.threshold import DynamicThreshold
from fastguide.process import EDM, VP, Flow, Level, Noising, Prediction, Process, data_level
from fastguide.solvers import (
    Solver,
    consistency,
    ddim,
    ddpm,
    deis,
    dpm_2m,
    dpm_3m,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    euler,
    euler_ancestral,
    heun,
    lms,
    pndm,
    unipc,
)
from fastguide.spacing import Levels

Clamp = tuple[float, float] | DynamicThreshold | None
_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
FEW_STEPS = 15  # below, DPM-Solver and DEIS end at lower orders


class NotOurs(ValueError):
    """A scheduler, or a flag of it, whose steps are not ours; it may take them itself."""


@dataclass(frozen=True)
class Meaning:
    """What a scheduler's numbers mean, for any number of steps.

    Args:
        scaled: whether its latents are x / alpha.
        time_scale: what our t is multiplied with for the network: flows count to 1, networks to
            1000.
        known: whether the levels are, or stand in for ones that the scheduler does not tell.
    """

    process: Noising
    prediction: Prediction
    clamp: Clamp
    scaled: bool
    time_scale: float = 1.0
    known: bool = True


@dataclass(frozen=True)
class Course:
    """One run.

    Args:
        levels, solver: as `fastguide.Sampler` takes them.
        times: the network's time at each evaluation.
        idle: evaluations at the end that change nothing, beyond those of `times`.
    """

    levels: Levels
    solver: Solver
    times: tuple[float, ...]
    idle: int = 0


@dataclass(frozen=True)
class Jumps(Levels):
    """Levels whose steps end where the scheduler says, which is not always where the next begin."""

    pairs: tuple[tuple[Level, Level], ...] = ()

    def __post_init__(self) -> None:
        pass

    def steps(self) -> Iterator[tuple[Level, Level]]:
        return iter(self.pairs)


def meaning_of(scheduler: Any) -> Meaning:
    """Read a scheduler's config.

    Raises:
        NotOurs: a scheduler, or a flag of it, that we do not have.
    """
    name, config = _name(scheduler), scheduler.config
    _check_flags(scheduler)
    if name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        _require(scheduler, "prediction_type", "epsilon")
        process = EDM(float(scheduler.sigmas[-2]), float(config.sigma_max))
        prediction = Prediction("edm", sigma_data=float(config.sigma_data))
        return Meaning(process, prediction, _clamp(scheduler), False)
    if name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"):
        return Meaning(Flow(), Prediction("flow"), None, False, float(config.num_train_timesteps))
    kind = PREDICTIONS.get(config.prediction_type)
    if kind is None:
        raise _unsupported(scheduler, "prediction_type")
    flow = bool(_get(scheduler, "use_flow_sigmas"))
    if flow != (kind == "flow"):
        raise _unsupported(scheduler, "use_flow_sigmas", f"with prediction_type {kind!r}")
    if flow:
        scale = float(config.num_train_timesteps)
        return Meaning(Flow(), Prediction("flow"), _clamp(scheduler), False, scale)
    scaled = name in _SCALED
    return Meaning(_vp(scheduler), Prediction(kind), _clamp(scheduler), scaled)  # type: ignore[arg-type]


def course_of(
    scheduler: Any, begin: int = 0, eta: float = 0.0, use_clipped: bool = False
) -> Course:
    """The run that the scheduler has been set to by `set_timesteps`, from its timestep number
    `begin` on.

    Args:
        eta, use_clipped: what diffusers' pipelines call `eta` and `use_clipped_model_output`.

    Raises:
        NotOurs: its steps, or how they begin or end, are not ours.
    """
    name = _name(scheduler)
    if eta and name not in ("DDIMScheduler", "TCDScheduler"):
        eta = 0.0  # which is what diffusers' pipelines do with it
    course = _COURSES[name](scheduler, begin, eta)
    if use_clipped and course.solver.name == "ddim":
        return Course(course.levels, course.solver(rederive=True), course.times, course.idle)
    return course


def _vp(scheduler: Any) -> VP:
    config = scheduler.config
    zero = bool(_get(scheduler, "rescale_betas_zero_snr"))
    name = _NAMES.get(config.beta_schedule) if config.trained_betas is None else None
    if name is None:
        return VP.from_betas(scheduler.betas.double().tolist())
    total = int(config.num_train_timesteps)
    return VP(name, float(config.beta_start), float(config.beta_end), total, zero)  # type: ignore[arg-type]


def _clamp(scheduler: Any) -> Clamp:
    if _name(scheduler) == "TCDScheduler":  # it has the flags, but never reads them
        return None
    if _get(scheduler, "thresholding"):
        ceiling = float(scheduler.config.sample_max_value)
        share = float(scheduler.config.dynamic_thresholding_ratio)
        return DynamicThreshold(share, min(1.0, ceiling), ceiling)
    if _get(scheduler, "clip_sample"):
        size = float(scheduler.config.clip_sample_range)
        return (-size, size)
    return None


# Levels


def _at(scheduler: Any, t: float) -> Level:
    """The level of a training timestep, from the scheduler's table."""
    square = float(scheduler.alphas_cumprod[int(t)].double())
    return Level(float(t), math.sqrt(square), math.sqrt(1.0 - square))


def _final(scheduler: Any) -> Level:
    square = float(scheduler.final_alpha_cumprod)
    return data_level() if square == 1.0 else Level(0.0, math.sqrt(square), math.sqrt(1 - square))


def _of_sigma(process: Process, sigma: float, t: float) -> Level:
    if sigma == 0.0:
        return data_level()
    if isinstance(process, Flow):
        return Level(sigma, 1.0 - sigma, sigma)
    if isinstance(process, EDM):
        return Level(sigma, 1.0, sigma)
    alpha = 1.0 / math.hypot(1.0, sigma)
    return Level(t, alpha, sigma * alpha)


def _times(scheduler: Any, begin: int, process: Process) -> tuple[float, ...]:
    scale = meaning_of(scheduler).time_scale
    return tuple(float(t) / scale for t in scheduler.timesteps.tolist()[begin:])


def _by_sigmas(scheduler: Any, begin: int, stride: int = 1) -> tuple[Levels, int]:
    """The levels of the sigmas from `begin` on, and how many idle steps end them."""
    process = meaning_of(scheduler).process
    sigmas = scheduler.sigmas.double().tolist()[begin:]
    times = [*scheduler.timesteps.tolist()[begin:], 0.0]
    sigmas = sigmas[: len(times)]  # of log-linear ones there is one more, which no step reaches
    if stride == 2:  # Heun's sigmas come twice, but for the first and the last
        sigmas = [sigmas[0], *sigmas[1:-1:2], sigmas[-1]]
        times = [times[0], *times[1:-1:2], 0.0]
    points = [_of_sigma(process, s, t) for s, t in zip(sigmas, times, strict=True)]
    idle = 0
    while len(points) > 2 and points[-1].ratio == points[-2].ratio:
        points.pop()
        idle += 1
    return Levels(process, tuple(points)), idle


def _sigma_course(
    scheduler: Any, begin: int, solver: Solver, stride: int = 1, idles: bool = True
) -> Course:
    levels, idle = _by_sigmas(scheduler, begin, stride)
    if idle and not idles:
        raise NotOurs(
            f"the scheduler is a {_name(scheduler)} whose last step does not change the noise "
            "(final_sigmas_type 'sigma_min' after the smallest sigma), which we do not have"
        )
    times = _times(scheduler, begin, levels.process)
    return Course(levels, solver, times[: len(times) - idle], idle)


# Courses: one function a scheduler


def _ddim(scheduler: Any, begin: int, eta: float) -> Course:
    process = meaning_of(scheduler).process
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    pairs = []
    for t in scheduler.timesteps.tolist()[begin:]:
        to = _at(scheduler, t - stride) if t >= stride else _final(scheduler)
        pairs.append((_at(scheduler, t), to))
    points = (*(now for now, _ in pairs), pairs[-1][1])
    levels = Jumps(process, points, pairs=tuple(pairs))
    return Course(levels, ddim(eta=eta, rederive=False), _times(scheduler, begin, process))


def _ddpm(scheduler: Any, begin: int, eta: float) -> Course:
    process = meaning_of(scheduler).process
    kind = scheduler.config.variance_type
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large"):
        raise _unsupported(scheduler, "variance_type")
    times = scheduler.timesteps.tolist()[begin:]
    if kind == "fixed_large" and times[-1] > 0:
        raise _unsupported(
            scheduler, "variance_type", f"with a last timestep of {times[-1]}, not 0"
        )
    levels = Levels(process, (*(_at(scheduler, t) for t in times), data_level()))
    solver = ddpm(variance="large" if kind == "fixed_large" else "small")
    return Course(levels, solver, _times(scheduler, begin, process))


def _pndm(scheduler: Any, begin: int, eta: float) -> Course:
    if begin:
        raise NotOurs(
            f"the run begins at step {begin} of a PNDMScheduler, whose start-up needs step 0; "
            "use another scheduler, such as DDIMScheduler"
        )
    process = meaning_of(scheduler).process
    visited = sorted({int(t) for t in scheduler._timesteps.tolist()}, reverse=True)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    if any(now - to != stride for now, to in pairwise(visited)):
        raise _unsupported(scheduler, "timestep_spacing", f"with {len(visited)} uneven steps")
    end = _at(scheduler, visited[-1] - stride) if visited[-1] >= stride else _final(scheduler)
    points = [_at(scheduler, t) for t in visited]
    if end.ratio == points[-1].ratio:
        raise _unsupported(scheduler, "steps_offset", "with set_alpha_to_one False")
    warmup = not scheduler.config.skip_prk_steps
    if warmup and stride % 2:
        raise _unsupported(scheduler, "skip_prk_steps", f"with steps of {stride}, which is odd")
    solver = pndm(warmup=warmup)
    return Course(Levels(process, (*points, end)), solver, _times(scheduler, 0, process))


def _euler(scheduler: Any, begin: int, eta: float) -> Course:
    return _sigma_course(scheduler, begin, euler)


def _euler_ancestral(scheduler: Any, begin: int, eta: float) -> Course:
    return _sigma_course(scheduler, begin, euler_ancestral)


def _heun(scheduler: Any, begin: int, eta: float) -> Course:
    return _sigma_course(scheduler, begin, heun(over="ratio"), stride=2)


def _lms(scheduler: Any, begin: int, eta: float) -> Course:
    return _sigma_course(scheduler, begin, lms)


_DPM: dict[tuple[str, int], Solver] = {
    ("dpmsolver++", 1): ddim,
    ("dpmsolver++", 2): dpmpp_2m,
    ("dpmsolver++", 3): dpmpp_3m(published=True),
    ("dpmsolver", 1): ddim,
    ("dpmsolver", 2): dpm_2m,
    ("dpmsolver", 3): dpm_3m(published=True),
    ("sde-dpmsolver++", 1): ddim(eta=1.0),
    ("sde-dpmsolver++", 2): dpmpp_2m_sde,
    ("sde-dpmsolver++", 3): dpmpp_3m_sde(
        published=True, solver_type="midpoint"
    ),  # diffusers has a sign of it wrong
}


def _dpm(scheduler: Any, begin: int, eta: float) -> Course:
    config = scheduler.config
    solver = _DPM.get((config.algorithm_type, config.solver_order))
    if solver is None:
        raise _unsupported(scheduler, "algorithm_type", f"of order {config.solver_order}")
    if config.solver_order > 1:
        _require(scheduler, "solver_type", "midpoint")
        solver = _ending(scheduler, solver)
        late = config.final_sigmas_type != "zero" and not solver.options["lower_order_final"]
        if config.euler_at_final and late and not _by_sigmas(scheduler, begin)[1]:
            raise _unsupported(scheduler, "euler_at_final")
    return _sigma_course(scheduler, begin, solver)


def _ending(scheduler: Any, solver: Solver) -> Solver:
    """With the lower orders at the end that runs of few steps have."""
    few = scheduler.config.lower_order_final and len(scheduler.timesteps) < FEW_STEPS
    if few and _by_sigmas(scheduler, 0)[1]:  # the step of order 1 is an idle one
        if scheduler.config.solver_order == 3:
            raise _unsupported(scheduler, "lower_order_final", "with a last step of no change")
        few = False
    return solver(lower_order_final=bool(few))


def _unipc(scheduler: Any, begin: int, eta: float) -> Course:
    _require(scheduler, "predict_x0", True)
    _require(scheduler, "solver_p", None)
    _require(scheduler, "disable_corrector", [])
    config = scheduler.config
    solver = unipc(
        order=config.solver_order,
        variant=config.solver_type,
        lower_order_final=bool(config.lower_order_final),
    )
    return _sigma_course(scheduler, begin, solver, idles=False)


def _deis(scheduler: Any, begin: int, eta: float) -> Course:
    _require(scheduler, "algorithm_type", "deis")
    _require(scheduler, "solver_type", "logrho")
    solver = _ending(scheduler, deis(order=scheduler.config.solver_order))
    return _sigma_course(scheduler, begin, solver)


def _flow(scheduler: Any, begin: int, eta: float) -> Course:
    stochastic = scheduler.config.stochastic_sampling
    return _sigma_course(scheduler, begin, consistency(sigma_min=0.0) if stochastic else euler)


def _flow_heun(scheduler: Any, begin: int, eta: float) -> Course:
    return _sigma_course(scheduler, begin, heun, stride=2)


def _lcm(scheduler: Any, begin: int, eta: float) -> Course:
    process = meaning_of(scheduler).process
    points = [_at(scheduler, t) for t in scheduler.timesteps.tolist()[begin:]]
    solver = lcm(scaling=float(scheduler.config.timestep_scaling))
    levels = Levels(process, (*points, data_level()))
    return Course(levels, solver, _times(scheduler, begin, process))


def _tcd(scheduler: Any, begin: int, eta: float) -> Course:
    process = meaning_of(scheduler).process
    times = [*scheduler.timesteps.tolist()[begin:], 0]
    marks = tuple(_at(scheduler, math.floor((1.0 - eta) * t)) for t in times[1:])
    levels = Levels(process, tuple(_at(scheduler, t) for t in times))
    return Course(levels, tcd(marks=marks), _times(scheduler, begin, process))


_COURSES: dict[str, Callable[[Any, int, float], Course]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DEISMultistepScheduler": _deis,
    "DPMSolverMultistepScheduler": _dpm,
    "EDMDPMSolverMultistepScheduler": _dpm,
    "EDMEulerScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "EulerDiscreteScheduler": _euler,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow_heun,
    "HeunDiscreteScheduler": _heun,
    "LCMScheduler": _lcm,
    "LMSDiscreteScheduler": _lms,
    "PNDMScheduler": _pndm,
    "TCDScheduler": _tcd,
    "UniPCMultistepScheduler": _unipc,
}
_SCALED = {
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
}

# Flags

_IN_THE_TABLES = {  # what they do is in timesteps, sigmas and alphas_cumprod
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("timestep_spacing", "timestep_type", "steps_offset", "rescale_betas_zero_snr"),
    *("interpolation_type", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    *(
        "use_lu_lambdas",
        "use_flow_sigmas",
        "flow_shift",
        "sigma_min",
        "sigma_max",
        "sigma_schedule",
    ),
    *("rho", "final_sigmas_type", "lambda_min_clipped", "set_alpha_to_one", "shift"),
    *("shift_terminal", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len"),
    *("max_image_seq_len", "time_shift_type", "original_inference_steps"),
}
_HANDLED = {
    *("prediction_type", "clip_sample", "clip_sample_range", "thresholding", "sigma_data"),
    *("dynamic_thresholding_ratio", "sample_max_value", "solver_order", "algorithm_type"),
    *("solver_type", "lower_order_final", "euler_at_final", "predict_x0", "disable_corrector"),
    *("solver_p", "skip_prk_steps", "timestep_scaling", "stochastic_sampling"),
}


def _check_flags(scheduler: Any) -> None:
    """Every flag that is neither in the tables nor handled has to be at its default."""
    known = _IN_THE_TABLES | _HANDLED
    if _name(scheduler) == "DDPMScheduler":
        known = known | {"variance_type"}
    kind: Any = type(scheduler)
    for name, default in _flags(kind):
        if name in known:
            continue
        value = _get(scheduler, name)
        if value is not None and value != default:
            raise _unsupported(scheduler, name)


@functools.cache
def _flags(kind: Any) -> tuple[tuple[str, Any], ...]:
    """The names and defaults of a scheduler's flags."""
    parameters = inspect.signature(kind.__init__).parameters
    return tuple((name, one.default) for name, one in list(parameters.items())[1:])


def _name(scheduler: Any) -> str:
    name = type(scheduler).__name__
    if name not in _COURSES:
        raise NotOurs(
            f"the scheduler is a {name}, but it should be one of {', '.join(sorted(_COURSES))}"
        )
    return name


def _get(scheduler: Any, flag: str) -> Any:
    return getattr(scheduler.config, flag, None)


def _require(scheduler: Any, flag: str, value: object) -> None:
    if _get(scheduler, flag) != value:
        raise _unsupported(scheduler, flag, f"where we have {value!r}")


def _unsupported(scheduler: Any, flag: str, where: str = "") -> NotOurs:
    return NotOurs(
        f"the {type(scheduler).__name__} has {flag} {_get(scheduler, flag)!r}"
        f"{' ' + where if where else ''}, which we do not support"
    )
