"""Solvers that no installed library has, against plain loops over their authors' formulas."""

import math
from itertools import pairwise

import pytest
import torch
from exact import PROCESSES, two_classes

import fastguide as fg

MODEL = two_classes(PROCESSES["edm"])
LEVELS = fg.karras.run(PROCESSES["edm"], 9)
SIGMAS = [point.sigma for point in LEVELS.points]
LABELS = torch.tensor([0, 1, 1])
SCALE = 0.7


def draws():
    generator = torch.Generator().manual_seed(3)
    shape = (3, *MODEL.shape)
    noises = [torch.randn(shape, generator=generator) for _ in range(9)]
    return noises[0], noises[1:]


def images(x, sigma, scale=None):
    """(guided, unconditional) in double precision; without a scale the conditional one alone."""
    level = LEVELS.process.level(sigma)
    a, b = MODEL.prediction.denoised(level)
    t = torch.full((3,), MODEL.prediction.net_time(level), dtype=torch.float64)
    scaled = MODEL.prediction.input_scale(level) * x
    cond = a * x + b * MODEL.net(scaled, t, LABELS)
    if scale is None:
        return cond, cond
    uncond = a * x + b * MODEL.net(scaled, t, torch.full_like(LABELS, MODEL.null))
    return uncond + scale * (cond - uncond), uncond


def split(now, to, eta):
    up = min(to, eta * (to**2 * (now**2 - to**2) / now**2) ** 0.5)
    return (to**2 - up**2) ** 0.5, up


def check(loop, solver, scale=None):
    start, noises = draws()
    left = iter(noises)
    want = loop(start.double() * SIGMAS[0], lambda: next(left).double())
    used = len(noises) - len(list(left))
    guidance = None if scale is None else fg.CFG(scale)
    sampler = fg.Sampler(MODEL, guidance, solver, levels=LEVELS)
    got = sampler(LABELS, range(3), noise=start, step_noise=noises[:used] or None)
    assert ((got - want).abs().max() / want.abs().max()).item() < 1e-5


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("s_noise", [1.0, 0.8])
def test_er_sde(order, s_noise):
    def phi(r):
        return r * (math.exp(r**0.3) + 10.0)

    def loop(x, draw):
        past = []
        for s, t in pairwise(SIGMAS):
            d, _ = images(x, s)
            if t == 0.0:
                return d
            r, dt = phi(t) / phi(s), t - s
            grid = [t + i * (s - t) / 200 for i in range(200)]
            x = r * x + (1 - r) * d
            first = second = None
            if order > 1 and past:
                first = (d - past[-1][1]) / (s - past[-1][0])
                x = x + (dt + phi(t) * sum(1 / phi(g) for g in grid) * (s - t) / 200) * first
            if order > 2 and len(past) > 1:
                second = (first - past[-1][2]) / ((s - past[-2][0]) / 2)
                total = sum((g - s) / phi(g) for g in grid) * (s - t) / 200
                x = x + (dt**2 / 2 + total * phi(t)) * second
            x = x + s_noise * math.sqrt(t**2 - (s * r) ** 2) * draw()
            past.append((s, d, first))
        return x

    check(loop, fg.er_sde(order=order, s_noise=s_noise, points=200))


@pytest.mark.parametrize("scale", [None, SCALE])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_res_multistep(eta, scale):
    def loop(x, draw):
        before = None
        for i, (s, t) in enumerate(pairwise(SIGMAS)):
            d, u = images(x, s, scale)
            down, up = split(s, t, eta) if eta else (t, 0.0)
            if down == 0.0 or before is None:
                x = d + (x - u) / s * down
            else:
                h = math.log(s / down)
                c2 = -math.log(SIGMAS[i - 1] / before[0]) / h
                phi1 = -math.expm1(-h) / h
                phi2 = (1 - phi1) / h
                b2 = phi2 / c2
                if scale is not None:
                    x = x + (d - u)
                x = math.exp(-h) * x + h * ((phi1 - b2) * u + b2 * before[1])
            if t > 0.0 and up:
                x = x + up * draw()
            before = (down, u)
        return x

    solver = fg.res_multistep if scale is None else fg.res_multistep_cfgpp
    check(loop, solver(eta=eta), scale)


@pytest.mark.parametrize("scale", [None, SCALE])
@pytest.mark.parametrize("gamma", [2.0, 1.3])
def test_gradient_estimation(gamma, scale):
    def loop(x, draw):
        old = None
        for s, t in pairwise(SIGMAS):
            image, u = images(x, s, scale)
            d = (x - u) / s
            if t == 0.0:
                return image
            x = image + d * t
            if old is not None:
                x = x + (gamma - 1) * (d - old) * (t - s)
            old = d
        return x

    solver = fg.gradient_estimation if scale is None else fg.gradient_estimation_cfgpp
    check(loop, solver(gamma=gamma), scale)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_cfgpp_of_2s(eta):
    def loop(x, draw):
        for s, t in pairwise(SIGMAS):
            d, u = images(x, s, SCALE)
            down, up = split(s, t, eta)
            if down == 0.0:
                return d
            mid = math.sqrt(s * down)
            _, later = images(mid / s * x + (1 - mid / s) * u, mid, SCALE)
            x = down / s * x + (1 - down / s) * later + (d - u)
            if up:
                x = x + up * draw()
        return x

    check(loop, fg.dpmpp_2s_ancestral_cfgpp(eta=eta), SCALE)


ADAMS = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12)}
ADAMS[4] = (55 / 24, -59 / 24, 37 / 24, -9 / 24)


def varying(h):
    """The published weights for steps of sizes h, newest first."""
    if len(h) == 1:
        return (1.0,)
    a = h[0] / h[1]
    if len(h) == 2:
        return (1 + a / 2, -a / 2)
    b = h[1] / h[2]
    one = (1 - h[0] / (3 * (h[0] + h[1])) * (h[0] * (h[0] + h[1])) / (h[1] * (h[1] + h[2]))) / 2
    if len(h) == 3:
        return (1 + a / 2 + one, -a / 2 - (1 + b) * one, one * b)
    c = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
    s2, s3 = h[0] + h[1], h[0] + h[1] + h[2]
    two = (1 - h[0] / (3 * s2)) / 2 + (1 - h[0] / (2 * s2)) * h[0] / (6 * s3)
    two *= (h[0] * s2 * s3) / (h[1] * (h[1] + h[2]) * (h[1] + h[2] + h[3]))
    return (
        1 + a / 2 + one + two,
        -a / 2 - (1 + b) * one - (1 + b + c) * two,
        one * b + (b + c * (1 + h[2] / h[3])) * two,
        -two * c * b,
    )


@pytest.mark.parametrize("order", [2, 3, 4])
@pytest.mark.parametrize("varies", [False, True])
def test_ipndm(order, varies):
    def loop(x, draw):
        sizes, slopes = [], []
        for s, t in pairwise(SIGMAS):
            d, _ = images(x, s)
            if t == 0.0:
                return d
            sizes, slopes = [t - s, *sizes][:order], [(x - d) / s, *slopes][:order]
            weights = varying(sizes) if varies else ADAMS[len(sizes)]
            x = x + (t - s) * sum(w * e for w, e in zip(weights, slopes, strict=True))
        return x

    check(loop, (fg.ipndm_v if varies else fg.ipndm)(order=order))


@pytest.mark.parametrize("over", ["t", "rho"])
def test_deis_integrates_polynomials_in_its_variable(over):
    """With eps a parabola in the variable, the third step and those after it are exact."""
    process = fg.VP("linear")
    levels = fg.Levels.from_times(process, [900, 740, 600, 410, 300])
    ratios = torch.linspace(levels.points[2].ratio, levels.points[3].ratio, 4001).double()

    def value(level):
        u = level.t / 1000 if over == "t" else level.ratio / 10
        return 0.3 + 0.7 * u - 0.4 * u * u

    *_, update = list(fg.deis(over=over).run(fg.Levels(process, levels.points[:4])))
    now, to = levels.points[2:4]
    slots = {f"eps{i}": value(levels.points[2 - i]) for i in (1, 2)}
    x = 0.2
    slots |= {"x": x, "denoised": (x - now.sigma * value(now)) / now.alpha}
    got = sum(c * slots[name] for name, c in update.x.items())
    moved = torch.trapezoid(
        torch.tensor([value(process.at_ratio(r)) for r in ratios.tolist()]).double(), ratios
    )
    assert got == pytest.approx(to.alpha * (x / now.alpha + moved.item()), rel=1e-5)
