"""APG, CFG-Zero*, rescale, TCFG, MAMBO-G, adaptive and frequency-decoupled guidance and CFG-Norm
against their plain formulas in fp64.
"""

import exact
import pytest
import torch
from evaluation import evaluated
from test_perturbation import STEPS, Plain, dit, model_of
from torch.nn import functional as F

import fastguide as fg
from fastguide import reference
from fastguide.engine.filters import high_pass
from fastguide.engine.plan import make_plan
from fastguide.solvers import ddim

APG = {"eta": 0.3, "radius": 4.0, "momentum": -0.5}


def inner(a, b):
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)


def std(a):
    return a.flatten(1).std(1).view(-1, 1, 1, 1)


def apg(c, u, x, a, b, w, memory, eta=1.0, radius=float("inf"), momentum=0.0):
    """In the denoised image; returns it."""
    clean, delta = a * x + b * c, b * (c - u)
    delta = memory["m"] = delta + momentum * memory.get("m", torch.zeros_like(delta))
    delta = delta * (radius / inner(delta, delta).sqrt()).clamp(max=1.0)
    along = inner(delta, clean) / inner(clean, clean) * clean
    return clean + (w - 1) * (delta - along + eta * along)


def in_prediction(formula):
    """A formula on predictions, as one that gives the denoised image."""
    return lambda c, u, x, a, b, w, memory: a * x + b * formula(c, u, w)


def zero_star(c, u, w):
    s = inner(c, u) / (inner(u, u) + 1e-8)
    return s * u + w * (c - s * u)


def rescaled(c, u, w, share=0.7):
    d = u + w * (c - u)
    return share * d * std(c) / std(d) + (1 - share) * d


def normed(axes, cap=1.0, most=1.0):
    def formula(c, u, w):
        d = u + w * (c - u)
        ratio = (c.square().sum(axes, True) / d.square().sum(axes, True)).sqrt()
        return d * (cap * ratio).clamp(max=most)

    return formula


def tangential(c, u, w):
    both = torch.stack([c.flatten(1), u.flatten(1)], 1)
    v = torch.linalg.svd(both, full_matrices=False)[2][:, 0]
    u = ((u.flatten(1) * v).sum(1, keepdim=True) * v).view_as(u)
    return u + w * (c - u)


def damped(c, u, w, alpha=8.0):
    ratio = (inner(c - u, c - u) / inner(u, u)).sqrt()
    return u + (1 + (w - 1) * torch.exp(-alpha * ratio)) * (c - u)


def in_denoised(c, u, x, a, b, w, memory):
    """CFG, its denoised image rescaled."""
    clean, d = a * x + b * c, a * x + b * (u + w * (c - u))
    return 0.4 * d * std(clean) / std(d) + 0.6 * d


def adaptive(c, u, x, a, b, w, memory, similarity=0.9):
    off = memory.get("off", torch.zeros(len(c), 1, 1, 1, dtype=torch.bool))
    cosine = inner(c, u) / (inner(c, c) * inner(u, u)).sqrt()
    memory["off"] = off | (cosine > similarity)
    return a * x + b * torch.where(off, c, u + w * (c - u))


def decoupled(c, u, w, low=2.0, levels=1):
    fine = laplacian(c - u, levels)
    return u + low * (c - u) + (w - low) * fine


def laplacian(image, levels):
    """The image less its coarse part, by one dense 5 x 5 convolution a level."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=image.dtype) / 16
    kernel = (taps.view(-1, 1) * taps).expand(image.shape[1], 1, 5, 5)

    def blurred(y):
        padded = F.pad(y, [2, 2, 2, 2], mode="reflect")
        return F.conv2d(padded, kernel, groups=y.shape[1])

    coarse, sizes = image, []
    for _ in range(levels):
        sizes.append(coarse.shape[2:])
        half = (coarse.shape[2] // 2, coarse.shape[3] // 2)
        coarse = F.interpolate(blurred(coarse), half, mode="bilinear", align_corners=False)
    for size in reversed(sizes):
        coarse = blurred(F.interpolate(coarse, size, mode="bilinear", align_corners=False))
    return image - coarse


CASES = {
    "apg": (
        lambda w: fg.APG(fg.CFG(w), **APG),
        lambda *arguments: apg(*arguments, **APG),
    ),
    "apg, no momentum": (
        lambda w: fg.APG(fg.CFG(w), eta=0.0, radius=2.0),
        lambda *arguments: apg(*arguments, eta=0.0, radius=2.0),
    ),
    "zero star": (lambda w: fg.CFGZeroStar(fg.CFG(w)), in_prediction(zero_star)),
    "rescale": (lambda w: fg.CFG(w).rescale(0.7), in_prediction(rescaled)),
    "rescale, denoised": (lambda w: fg.CFG(w).rescale(0.4, "denoised"), in_denoised),
    "tcfg": (lambda w: fg.TCFG(fg.CFG(w)), in_prediction(tangential)),
    "mambo": (lambda w: fg.MAMBO(fg.CFG(w)), in_prediction(damped)),
    "norm": (lambda w: fg.CFGNorm(fg.CFG(w)), in_prediction(normed(1))),
    "norm of rows": (
        lambda w: fg.CFGNorm(fg.CFG(w), -1, grows=True),
        in_prediction(normed(3, most=1e9)),
    ),
    "norm of all": (
        lambda w: fg.CFGNorm(fg.CFG(w), None, 0.9),
        in_prediction(normed((1, 2, 3), 0.9)),
    ),
    "adaptive": (lambda w: fg.Adaptive(fg.CFG(w), 0.9), adaptive),
    "fdg": (lambda w: fg.FDG(2.0, w), in_prediction(decoupled)),
    "fdg, 2 levels": (
        lambda w: fg.FDG(2.0, w, levels=2),
        in_prediction(lambda c, u, w: decoupled(c, u, w, levels=2)),
    ),
}


def combined(found, state, row):
    """The denoised image that `ops.step` would make, in fp64."""
    return reference.combine(
        state.double(),
        [branch.double() for branch in found.branches],
        found.weights[1].double(),
        row.double(),
        found.deltas,
        found.factor,
        found.factored,
    )


@pytest.mark.parametrize("apart", [1.0, 1e-4])
@pytest.mark.parametrize("scale", [1.5, 7.5])
@pytest.mark.parametrize("name", CASES)
def test_one_evaluation_is_the_plain_formula(name, scale, apart):
    """To 1e-6 of the image, also where the predictions differ by 1e-4 of their norm; and what is
    added to the positive one to 1e-5 of itself, less the rounding of the weights to fp32.
    """
    torch.manual_seed(3)
    c = torch.randn(3, 2, 16, 16)
    u = c - apart * (0.5 * c + torch.randn(c.shape))
    model = fg.Model(
        lambda x, t, cond: torch.where(
            (cond == 0).view(-1, 1, 1, 1),
            c.repeat(len(x) // 3, 1, 1, 1),
            u.repeat(len(x) // 3, 1, 1, 1),
        ),
        fg.Flow(),
        fg.Prediction("flow"),
        (2, 16, 16),
        null=1,
    )
    level, x = fg.Level(0.6, 0.4, 0.6), torch.randn(c.shape)
    make, formula = CASES[name]
    cond = torch.zeros(3, dtype=torch.int64)
    _, found = evaluated(model, make(scale), level, x, cond)
    a, b = model.prediction.denoised(level)
    plan = make_plan(model.prediction, fg.Levels(fg.Flow(), (level, fg.Level(0.0, 1.0, 0.0))), ddim)
    got = combined(found, x, plan.table[1])
    want = formula(c.double(), u.double(), x.double(), a, b, scale, {})
    clean = a * x.double() + b * c.double()
    size = want.abs().max()
    assert (got - want).abs().max() < 1e-6 * size
    moved = (want - clean).abs().max()
    assert (got - want).abs().max() < 1e-5 * moved + 2e-7 * size
    cfg = a * x.double() + b * (u.double() + scale * (c.double() - u.double()))
    if apart == 1.0 and name != "adaptive":  # whose first evaluation is CFG's
        assert (want - cfg).abs().max() > 1e-3 * (want - clean).abs().max()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_is_the_plain_formula(name, batch):
    make, formula = CASES[name]
    cond, seeds, scale = torch.arange(batch) % 5, range(20, 20 + batch), 3.0
    memory = {}

    def guided(run, evaluation, x, t):
        b = -float(t[0])
        c, u = run.pred(x, t), run.pred(x, t, run.null)
        return (formula(c, u, x, 1.0, b, scale, memory) - x) / b

    want = Plain(model_of(dit().double()), cond, seeds, guided).run(seeds)
    got = fg.sample(model_of(dit()), cond, make(scale), steps=STEPS, seeds=seeds)
    size = want.abs().max()
    assert (got - want).abs().max() < 2e-5 * size
    plain = fg.sample(model_of(dit()), cond, fg.CFG(scale), steps=STEPS, seeds=seeds)
    assert (got - plain).abs().max() > 1e-3 * size


def test_settings_that_change_nothing(process):
    model, labels = exact.two_classes(process), torch.tensor([0, 1, 1])
    levels = fg.karras(sigma_max=10.0).run(process, 6)
    run = {"levels": levels, "seeds": range(3)}
    plain = fg.sample(model, labels, fg.CFG(3.0), **run)
    for same in (
        fg.APG(fg.CFG(3.0), eta=1.0),
        fg.MAMBO(fg.CFG(3.0), alpha=0.0),
        fg.CFG(3.0).rescale(0.0),
        fg.Adaptive(fg.CFG(3.0), 1.0),
        fg.FDG(3.0, 3.0),
    ):
        torch.testing.assert_close(
            fg.sample(model, labels, same, **run), plain, rtol=1e-5, atol=1e-5
        )
    alone = fg.sample(model, labels, None, **run)
    for off in (
        fg.APG(fg.CFG(1.0)),
        fg.CFGZeroStar(fg.CFG(1.0)),
        fg.CFG(1.0).rescale(0.7),
        fg.TCFG(fg.CFG(1.0)),
        fg.MAMBO(fg.CFG(1.0)),
        fg.Adaptive(fg.CFG(1.0)),
        fg.FDG(1.0, 1.0),
    ):
        sampler = fg.Sampler(model, off, levels=levels)
        assert sampler.plan.net_rows == sampler.plan.evaluations
        assert torch.equal(sampler(labels, range(3)), alone)


def test_a_sample_is_the_same_alone_and_with_others():
    model, cond = model_of(dit()), torch.tensor([1, 4, 2])
    for name, (make, _) in CASES.items():
        batch = fg.sample(model, cond, make(4.0), steps=STEPS, seeds=[7, 8, 9])
        alone = fg.sample(model, cond[1:2], make(4.0), steps=STEPS, seeds=[8])
        torch.testing.assert_close(batch[1:2], alone, rtol=1e-4, atol=1e-4, msg=name)


def test_what_lies_within_a_rescale_is_what_is_rescaled():
    """CFG rescaled, then PAG added; the other way round the whole is rescaled."""
    torch.manual_seed(0)
    c, u, p = torch.randn(3, 2, 2, 8, 8).unbind()
    x, level = torch.randn_like(c), fg.Level(0.6, 0.4, 0.6)

    def net(x_, t, cond):
        parts = {0: c, 1: u, 2: p}
        return torch.cat([parts[int(k[0])] for k in cond.split(2)])

    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (2, 8, 8), null=2)
    cond = torch.zeros(2, dtype=torch.int64)
    other = fg.Model(lambda x_, t, k: p, fg.Flow(), fg.Prediction("flow"), (2, 8, 8), null=2)
    weak = fg.AutoGuidance(other, 1.5)
    c64, u64, p64 = c.double(), u.double(), p.double()
    inner_one = rescaled(c64, u64, 4.0) + 0.5 * (c64 - p64)
    whole = u64 + 4.0 * (c64 - u64) + 0.5 * (c64 - p64)
    outer_one = 0.7 * whole * std(c64) / std(whole) + 0.3 * whole
    both = rescaled(c64, u64, 4.0) + 0.5 * (c64 - p64)
    both = 0.5 * both * std(c64) / std(both) + 0.5 * both
    for guidance, want in (
        (fg.CFG(4.0).rescale(0.7) + weak, inner_one),
        ((fg.CFG(4.0) + weak).rescale(0.7), outer_one),
        ((fg.CFG(4.0).rescale(0.7) + weak).rescale(0.5), both),
    ):
        got = fg.sample(
            model,
            cond,
            guidance,
            levels=fg.Levels(fg.Flow(), (level, fg.Level(0.0, 1.0, 0.0))),
            noise=(x / level.sigma),
            negative=torch.ones(2, dtype=torch.int64),
            seeds=range(2),
        )
        want = x.double() - level.t * want
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_zero_steps_hold_the_velocity_at_zero():
    model, cond = model_of(dit()), torch.arange(2)
    start = fg.noise(range(2), (2, 8, 8))
    seen = []
    guidance = fg.CFGZeroStar(fg.CFG(3.0), zero_steps=2)
    sampler = fg.Sampler(model, guidance, steps=5)
    sampler(cond, range(2), callback=lambda progress: seen.append(progress.x.clone()))
    torch.testing.assert_close(seen[0], start)
    torch.testing.assert_close(seen[1], start)
    assert (seen[2] - start).abs().max() > 1e-2
    assert sampler.plan.net_rows == 2 + 3 * 2
    vp = fg.Model(model.net, fg.VP("cosine"), fg.Prediction("v"), (2, 8, 8), null=5)
    with pytest.raises(ValueError, match="zero_steps is 2, but it should be 0 for a network"):
        fg.Sampler(vp, guidance)


def test_zero_steps_are_steps_with_all_of_their_evaluations():
    model, cond = model_of(dit()), torch.arange(2)
    start = fg.noise(range(2), (2, 8, 8))
    seen = []
    guidance = fg.CFGZeroStar(fg.CFG(3.0), zero_steps=2)
    sampler = fg.Sampler(model, guidance, "heun", steps=4)
    sampler(cond, range(2), callback=lambda progress: seen.append(progress.x.clone()))
    for x in seen[:4]:
        torch.testing.assert_close(x, start)
    assert (seen[4] - start).abs().max() > 1e-2
    assert sampler.plan.net_rows == 4 + 3 * 2
    up = sampler._planned.upward.plan  # 1 + 2 steps up, the last two at the velocity 0
    assert [len(row.pattern.branches) for row in up.rows[1:]] == [2, 2, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="adds noise and evaluates between the levels"):
        fg.Sampler(model, guidance, fg.euler(churn=2.0), steps=4)


def test_adaptive_guidance_stops_computing_rows():
    """No row of the delta once no sample is guided, and the same samples as with them."""
    rows = []
    inner_net = dit()

    def net(x, t, cond):
        rows.append(len(x))
        return inner_net(x, t, cond)

    model, cond = model_of(net), torch.arange(3)
    sampler = fg.Sampler(model, fg.Adaptive(fg.CFG(3.0), 0.0), steps=8)
    got = sampler(cond, range(3))
    first = rows.index(3)
    assert 1 <= first < 8
    assert rows == [6] * first + [3] * (8 - first)
    assert torch.isfinite(got).all()
    # what was dropped had weight 0: a run that never drops gives the same
    kept = fg.Sampler(model, fg.Adaptive(fg.CFG(3.0), 0.0) + fg.CFG(1e-9 + 1.0), steps=8)
    torch.testing.assert_close(kept(cond, range(3)), got, rtol=1e-4, atol=1e-4)


def test_projections_of_other_deltas_and_rectified_ones():
    model, cond = model_of(dit()), torch.arange(2)
    plain = fg.sample(model, cond, fg.CFG(3.0), steps=STEPS, seeds=range(2))
    for guidance in (
        fg.APG(fg.PAG(2.0), radius=1.0),
        fg.APG(fg.CFG(3.0) + fg.PAG(1.0), momentum=-0.5),
        fg.APG(fg.REG(fg.CFG(3.0)), radius=2.0),
        fg.APG(fg.REG(fg.CFG(3.0)), momentum=-0.5),
        fg.REG(fg.FDG(2.0, 4.0)),
        fg.TCFG(fg.ICG(3.0)),
        fg.MAMBO(fg.CFG(3.0, every=2)).rescale(0.5),
        fg.APG(fg.CFG(torch.tensor([2.0, 4.0])), radius=2.0),
        fg.CFGZeroStar(fg.CFG(3.0, schedule=fg.interval(0.2, 3.0))),
    ):
        got = fg.sample(model, cond, guidance, steps=6, seeds=range(2))
        assert torch.isfinite(got).all()
        assert (got - plain).abs().max() > 1e-3


def test_cfgpp_renoises_with_the_clean_negative():
    """Whatever is done to the delta, the negative image that the solver reads stays itself."""
    model, labels = exact.two_classes(exact.PROCESSES["edm"]), torch.tensor([0, 1, 1])
    run = {"steps": 6, "seeds": range(3), "solver": fg.ddim_cfgpp}
    plain = fg.sample(model, labels, fg.CFG(1.5), **run)
    for same in (
        fg.APG(fg.CFG(1.5), eta=1.0),
        fg.FDG(1.5, 1.5),
        fg.APG(fg.CFG(1.5), eta=1.0, momentum=1e-9),
    ):
        got = fg.sample(model, labels, same, **run)
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (5, 12)])
@pytest.mark.parametrize("levels", [1, 2])
def test_the_high_pass(shape, levels):
    image = torch.randn(2, 3, *shape, dtype=torch.float64)
    if min(shape) // 2 ** (levels - 1) >= 3:
        torch.testing.assert_close(
            high_pass(image, levels).double(), laplacian(image, levels), rtol=1e-5, atol=1e-5
        )
    constant = torch.ones(1, 1, *shape)
    assert high_pass(constant, levels).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fg.APG(fg.CFG(2.0), eta=-1.0), ValueError, "eta is -1.0"),
        (lambda: fg.APG(fg.CFG(2.0), radius=0.0), ValueError, "radius is 0.0"),
        (lambda: fg.APG(fg.CFG(2.0), momentum=1.0), ValueError, "momentum is 1.0"),
        (lambda: fg.APG(fg.CFG(2.0), space="x"), ValueError, "space is 'x'"),
        (lambda: fg.APG(4.0), TypeError, "guidance of APG is 4.0"),
        (lambda: fg.CFGZeroStar(fg.CFG(2.0), -1), ValueError, "zero_steps is -1"),
        (lambda: fg.MAMBO(fg.CFG(2.0), -1.0), ValueError, "alpha is -1.0"),
        (lambda: fg.Adaptive(fg.CFG(2.0), 2.0), ValueError, "similarity is 2.0"),
        (lambda: fg.FDG(2.0, 3.0, levels=0), ValueError, "levels is 0"),
        (lambda: fg.CFG(2.0).rescale(1.5), ValueError, "share is 1.5"),
        (lambda: fg.CFG(2.0).rescale(0.5, "x"), ValueError, "space is 'x'"),
        (lambda: fg.TCFG(fg.APG(fg.CFG(2.0))), ValueError, "has a projection.* within"),
        (lambda: fg.REG(fg.APG(fg.CFG(2.0))), ValueError, "REG has a projection.* within"),
        (lambda: fg.APG(fg.CFG(2.0).rescale(0.5)), ValueError, "has rescale within"),
        (lambda: fg.APG(fg.PAG(2.0, of="negative")), ValueError, "a delta of two terms"),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_norms():
    """What is beside a CFG-Norm is not held, what is done within it is; and what has no meaning is
    an error.
    """
    torch.manual_seed(4)
    model, cond = model_of(dit()), torch.arange(2)
    level, x = fg.Level(0.6, 0.4, 0.6), torch.randn(2, *model.shape)

    def guided(guidance):
        _, found = evaluated(model, guidance, level, x, cond)
        a, b = model.prediction.denoised(level)
        flow = fg.Levels(fg.Flow(), (level, fg.Level(0.0, 1.0, 0.0)))
        row = make_plan(model.prediction, flow, ddim).table[1]
        return (combined(found, x, row) - a * x) / b

    c = guided(None)
    cfg = guided(fg.CFG(4.0))
    ratio = (c.norm(dim=1, keepdim=True) / cfg.norm(dim=1, keepdim=True)).clamp(max=1.0)
    got = guided(fg.CFGNorm(fg.CFG(4.0)) + fg.CFG(3.0))
    want = ratio * cfg + 2.0 / 3.0 * (cfg - c)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    apg = guided(fg.APG(fg.CFG(4.0), eta=0.2))
    ratio = (c.norm(dim=1, keepdim=True) / apg.norm(dim=1, keepdim=True)).clamp(max=1.0)
    got = guided(fg.CFGNorm(fg.APG(fg.CFG(4.0), eta=0.2)))
    torch.testing.assert_close(got, ratio * apg, rtol=1e-5, atol=1e-5)
    for bad, match in (
        (lambda: fg.CFGNorm(fg.CFG(4.0)).rescale(0.7), "rescale has a norm"),
        (lambda: fg.APG(fg.CFGNorm(fg.CFG(4.0))), "norm .* within"),
        (lambda: fg.CFGNorm(fg.CFG(4.0), axes=True), "axes"),
        (lambda: guided(fg.CFGNorm(fg.CFG(4.0), axes=3)), "axes has 3"),
        (lambda: guided(fg.CFGNorm(fg.CFG(4.0)) + fg.CFGNorm(fg.CFG(2.0))), "2 CFGNorms"),
        (lambda: guided(fg.CFGNorm(fg.CFG(4.0)) + fg.APG(fg.CFG(2.0))), "beside a CFGNorm"),
    ):
        with pytest.raises(ValueError, match=match):
            bad()
