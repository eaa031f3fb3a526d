"""Noise processes `x_t = alpha x_0 + sigma n` and what a network predicts about them.

Everything here is Python floats in double precision; the loop never sees it, only the plan does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, Protocol, get_args

PredictionName = Literal["eps", "x0", "v", "flow", "edm", "consistency"]
BetaName = Literal["linear", "scaled_linear", "cosine"]


@dataclass(frozen=True)
class Level:
    """One noise level: `x = alpha x_0 + sigma n` at time `t` (in the units of its process)."""

    t: float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """Noise-to-signal ratio `sigma / alpha`: the sigma of EDM and k-diffusion; inf at alpha
        0.
        """
        return self.sigma / self.alpha if self.alpha > 0.0 else math.inf


class Process(Protocol):
    """What the spacings and the plan ask of a noise process."""

    @property
    def t_max(self) -> float: ...
    @property
    def t_min(self) -> float: ...
    def level(self, t: float) -> Level: ...
    def at_ratio(self, ratio: float) -> Level: ...


@dataclass(frozen=True)
class VP:
    """Variance-preserving process of DDPM (Ho et al. 2020), `alpha^2 = prod(1 - beta)`.

    `t` counts the training steps from 0 to `timesteps - 1` and may be fractional: log(sigma /
    alpha) is interpolated.

    Args:
        betas: "linear" (DDPM), "scaled_linear" (Stable Diffusion), "cosine" (Nichol and Dhariwal
            2021; `beta_start` and `beta_end` are not used) or the `timesteps` numbers themselves
            (see `from_betas`), each in (0, 1), the last also 1.
        zero_terminal_snr: rescale so that the last level is pure noise (Lin et al. 2023, algorithm
            1): sqrt(abar) minus its last value, times what keeps the first. There alpha is exactly
            0, which `eps` cannot serve. log(sigma / alpha) is inf, so between the last two
            timesteps alpha is interpolated instead.
    """

    betas: BetaName | tuple[float, ...] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    timesteps: int = 1000
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.timesteps < 2:
            raise ValueError(f"timesteps is {self.timesteps}, but it should be 2 or more")
        if isinstance(self.betas, str):
            if self.betas not in get_args(BetaName):
                raise ValueError(
                    f"betas is {self.betas!r}, but it should be one of {get_args(BetaName)}"
                )
        else:
            # a tuple, whatever it was: equal and hashable also after a round trip through JSON
            object.__setattr__(self, "betas", _checked_betas(self.betas, self.timesteps))
        if not 0.0 < self.beta_start < self.beta_end < 1.0:
            raise ValueError(
                f"beta_start, beta_end are {self.beta_start}, {self.beta_end}, "
                "but they should satisfy 0 < beta_start < beta_end < 1"
            )

    @classmethod
    def from_betas(cls, betas: Iterable[float], zero_terminal_snr: bool = False) -> VP:
        """The process of the given betas; `timesteps` is their number."""
        values = tuple(betas)
        return cls(betas=values, timesteps=len(values), zero_terminal_snr=zero_terminal_snr)

    @cached_property
    def beta_table(self) -> tuple[float, ...]:
        """The `timesteps` betas; the last is 1 where the last level is pure noise."""
        betas = self._named_betas()
        return _zero_terminal(betas) if self.zero_terminal_snr else betas

    def _named_betas(self) -> tuple[float, ...]:
        if isinstance(self.betas, tuple):
            return self.betas
        n = self.timesteps
        if self.betas == "cosine":

            def alpha_bar(u: float) -> float:
                return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

            return tuple(
                min(1 - alpha_bar((i + 1) / n) / alpha_bar(i / n), 0.999) for i in range(n)
            )
        power = 2 if self.betas == "scaled_linear" else 1
        lo, hi = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return tuple((lo + (hi - lo) * i / (n - 1)) ** power for i in range(n))

    @cached_property
    def log_ratios(self) -> tuple[float, ...]:
        """log(sigma / alpha) at t = 0, 1, ..., timesteps - 1: strictly increasing, the last may be
        inf.
        """
        out, log_abar = [], 0.0
        for beta in self.beta_table:
            if beta == 1.0:
                out.append(math.inf)
                continue
            log_abar += math.log1p(-beta)
            out.append(0.5 * (math.log(-math.expm1(log_abar)) - log_abar))
        return tuple(out)

    @property
    def t_max(self) -> float:
        return float(self.timesteps - 1)

    @property
    def t_min(self) -> float:
        return 0.0

    def level(self, t: float) -> Level:
        """The level at (fractional) timestep `t` in [0, timesteps - 1]."""
        if not 0.0 <= t <= self.t_max:
            raise ValueError(f"t is {t}, but it should lie in [0, {self.t_max:g}]")
        low = min(int(t), self.timesteps - 2)
        w = t - low
        left, right = self.log_ratios[low], self.log_ratios[low + 1]
        if math.isinf(right):
            return _vp_level_at_alpha(t, (1 - w) * _vp_level(low, left).alpha)
        return _vp_level(t, (1 - w) * left + w * right)

    def at_ratio(self, ratio: float) -> Level:
        """The level whose sigma / alpha is `ratio`, clipped to the trained range; 0 is the data."""
        if ratio <= 0.0:
            return data_level()
        want = math.log(ratio)
        table = self.log_ratios
        if want <= table[0]:
            return _vp_level(0.0, table[0])
        if math.isinf(table[-1]) and want > table[-2]:
            alpha = 1.0 / math.hypot(1.0, ratio)
            share = alpha / _vp_level(0.0, table[-2]).alpha
            return _vp_level_at_alpha(self.t_max - share, alpha)
        if want >= table[-1]:
            return _vp_level(self.t_max, table[-1])
        low, high = 0, self.timesteps - 1
        while high - low > 1:
            mid = (low + high) // 2
            low, high = (mid, high) if table[mid] <= want else (low, mid)
        return _vp_level(low + (want - table[low]) / (table[high] - table[low]), want)


@dataclass(frozen=True)
class EDM:
    """Variance-exploding process of EDM (Karras et al. 2022): alpha 1, `t` is sigma."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"sigma_min, sigma_max are {self.sigma_min}, {self.sigma_max}, "
                "but they should satisfy 0 < sigma_min < sigma_max"
            )

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def level(self, t: float) -> Level:
        """The level at sigma `t` >= 0."""
        if not 0.0 <= t < math.inf:
            raise ValueError(f"t is {t}, but a sigma should be finite and not negative")
        return Level(t, 1.0, t)

    def at_ratio(self, ratio: float) -> Level:
        """The level whose sigma is `ratio`."""
        return self.level(ratio)


@dataclass(frozen=True)
class Flow:
    """Rectified flow (Liu et al. 2022; Lipman et al. 2022): alpha = 1 - t, sigma = t, t in [0,
    1].
    """

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def t_min(self) -> float:
        return 0.0

    def level(self, t: float) -> Level:
        """The level at time `t` in [0, 1]; 1 is pure noise."""
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"t is {t}, but it should lie in [0, 1]")
        return Level(t, 1.0 - t, t)

    def at_ratio(self, ratio: float) -> Level:
        """The level whose sigma / alpha is `ratio`; inf is pure noise."""
        return self.level(1.0 if math.isinf(ratio) else ratio / (1.0 + ratio))


@dataclass(frozen=True)
class ContinuousVP:
    """The VP SDE of continuous time, or its sub-VP (Song et al. 2021): beta(s) from `beta_min` to
    `beta_max`, `log alpha = -s^2 (beta_max - beta_min) / 4 - s beta_min / 2`, s in [`s_min`, 1];
    sigma^2 = 1 - alpha^2, or with `sub` sigma = 1 - alpha^2.

    `t` is `scale` s, as score_sde's networks are given it.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    sub: bool = False
    s_min: float = 1e-3
    scale: float = 999.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"beta_min, beta_max are {self.beta_min}, {self.beta_max}, "
                "but 0 < beta_min <= beta_max"
            )
        if not 0.0 < self.s_min < 1.0 or not 0.0 < self.scale < math.inf:
            raise ValueError(
                f"s_min is {self.s_min} and scale {self.scale}, but s_min should lie between 0 and "
                "1 and scale be positive"
            )

    @property
    def t_max(self) -> float:
        return self.scale

    @property
    def t_min(self) -> float:
        return self.scale * self.s_min

    def level(self, t: float) -> Level:
        """The level at `t` in [scale s_min, scale]."""
        if not self.t_min * (1 - 1e-9) <= t <= self.t_max * (1 + 1e-9):  # computed ones are rounded
            raise ValueError(f"t is {t}, but it should lie in [{self.t_min:g}, {self.t_max:g}]")
        s = t / self.scale
        log_alpha = -s * s * (self.beta_max - self.beta_min) / 4.0 - s * self.beta_min / 2.0
        square = -math.expm1(2.0 * log_alpha)  # 1 - alpha^2
        return Level(t, math.exp(log_alpha), square if self.sub else math.sqrt(square))

    def at_ratio(self, ratio: float) -> Level:
        """The level whose sigma / alpha is `ratio`, clipped to the trained range; 0 is the data."""
        if ratio <= 0.0:
            return data_level()
        # -log alpha, from r^2 = alpha^-2 - 1, or r = 1 / alpha - alpha
        fall = math.asinh(0.5 * ratio) if self.sub else 0.5 * math.log1p(ratio * ratio)
        half, bend = 0.5 * self.beta_min, self.beta_max - self.beta_min
        s = 1.0 if math.isinf(fall) else 2.0 * fall / (half + math.sqrt(half**2 + bend * fall))
        return self.level(self.scale * min(max(s, self.s_min), 1.0))


Noising = VP | EDM | Flow | ContinuousVP  # the processes there are


def data_level() -> Level:
    """The clean end of every process."""
    return Level(0.0, 1.0, 0.0)


def _vp_level(t: float, log_ratio: float) -> Level:
    # alpha = 1 / sqrt(1 + r^2), sigma = r alpha, by hypot: exact to rounding at both ends
    ratio = math.exp(log_ratio)
    alpha = 1.0 / math.hypot(1.0, ratio)
    return Level(t, alpha, ratio * alpha)


def _vp_level_at_alpha(t: float, alpha: float) -> Level:
    return Level(t, alpha, math.sqrt((1.0 - alpha) * (1.0 + alpha)))  # (0, 1) exactly at alpha 0


def _checked_betas(betas: Iterable[float], timesteps: int) -> tuple[float, ...]:
    try:
        values = tuple(float(beta) for beta in betas)
    except (TypeError, ValueError):
        raise ValueError(
            f"betas is {betas!r}, but it should be one of {get_args(BetaName)} or numbers"
        ) from None
    if len(values) != timesteps:
        raise ValueError(
            f"timesteps is {timesteps}, but betas has {len(values)} numbers; "
            "VP.from_betas counts them"
        )
    for i, beta in enumerate(values):
        last = i == timesteps - 1
        if not (0.0 < beta < 1.0 or (last and beta == 1.0)):
            raise ValueError(
                f"betas[{i}] is {beta}, but it should lie in (0, 1{']' if last else ')'}"
            )
    return values


def _zero_terminal(betas: tuple[float, ...]) -> tuple[float, ...]:
    """`s_t = (r_t - r_(T-1)) r_0 / (r_0 - r_(T-1))`, r = sqrt(abar), as betas (Lin et al. 2023,
    algorithm 1).
    """
    roots, root = [], 1.0  # sqrt(abar)
    for beta in betas:
        root *= math.sqrt(1.0 - beta)
        roots.append(root)
    moved = [root - roots[-1] for root in roots]  # the scale cancels in the ratios
    return (betas[0], *(1.0 - (to / now) ** 2 for now, to in pairwise(moved)))


@dataclass(frozen=True)
class Prediction:
    """What the network returns, as an affine map of (x, prediction) to the denoised image.

    `eps`: the noise n. `x0`: the image. `v`: `alpha n - sigma x_0` (Salimans and Ho 2022).
    `flow`: `n - x_0`. `edm`: F of EDM, with `denoised = c_skip x + c_out F` (Karras et al. 2022,
    table 1) in the coordinates x / alpha, sigma / alpha. `consistency`: F of a consistency model
    (Song et al. 2023, appendix C), whose skip connection is the identity at `sigma_min`.
    """

    name: PredictionName
    sigma_data: float = 0.5
    sigma_min: float = 0.002

    def __post_init__(self) -> None:
        if self.name not in get_args(PredictionName):
            raise ValueError(
                f"prediction is {self.name!r}, but it should be one of {get_args(PredictionName)}"
            )
        if not 0.0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data is {self.sigma_data}, but it should be positive")
        if not 0.0 <= self.sigma_min < math.inf:
            raise ValueError(f"sigma_min is {self.sigma_min}, but it should not be negative")

    def denoised(self, level: Level) -> tuple[float, float]:
        """(a, b) with `denoised = a x + b prediction` at `level`."""
        alpha, sigma = level.alpha, level.sigma
        if self.name == "x0":
            return 0.0, 1.0
        if self.name == "v":  # x0 = (alpha x - sigma v) / (alpha^2 + sigma^2)
            square = alpha * alpha + sigma * sigma
            return alpha / square, -sigma / square
        if self.name == "flow":  # x = alpha x0 + sigma (x0 + u)
            return 1.0 / (alpha + sigma), -sigma / (alpha + sigma)
        if alpha == 0.0:
            raise ValueError(
                f"prediction is {self.name!r}, but at t = {level.t:g} alpha is 0, where it does "
                "not determine the denoised image; use x0, v or flow, or start below pure noise"
            )
        if self.name == "eps":
            return 1.0 / alpha, -sigma / alpha
        ratio, data = sigma / alpha, self.sigma_data
        square = ratio * ratio + data * data
        if self.name == "consistency":
            above = ratio - self.sigma_min
            return data * data / (above**2 + data**2) / alpha, above * data / math.sqrt(square)
        return data * data / square / alpha, ratio * data / math.sqrt(square)

    @property
    def log_time(self) -> float | None:
        """The factor of log(sigma / alpha) in the network's time, where the network is given that
        and the scaled `c_in x`; None where it is given t and x.
        """
        return {"edm": 0.25, "consistency": 250.0}.get(self.name)

    def input_scale(self, level: Level) -> float:
        """c_in: the network sees `c_in x`."""
        if self.log_time is None:
            return 1.0
        return 1.0 / (level.alpha * math.hypot(level.ratio, self.sigma_data))

    def net_time(self, level: Level) -> float:
        """What the network is given as its time: t; for `edm` log(sigma) / 4, for `consistency`
        1000 times that.
        """
        return level.t if self.log_time is None else self.log_time * math.log(level.ratio)
