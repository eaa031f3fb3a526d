"""Schedules: what they give, and where."""

import math

import pytest
import torch
from exact import PROCESSES, two_classes

import fastguide as fg
from fastguide.engine.plan import make_plan
from fastguide.guidance.schedule import values_of


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_an_interval_is_closed_where_levels_are_rounded(name):
    process = PROCESSES[name]
    levels = fg.Levels.from_sigmas(process, [9.0, 6.25, 2.0, 1.1, 0.5])
    for kind in ("sigma", "t"):
        ends = [p.ratio if kind == "sigma" else p.t for p in levels.points[1:4]]
        for nudge in (-1e-12, 0.0, 1e-12, 1e-7):
            low, high = ends[2] * (1 + nudge), ends[0] * (1 - nudge)
            values = fg.interval(low, high, over=kind).values(levels.points[:-1])
            assert values == [0.0, 1.0, 1.0, 1.0, 0.0], (kind, nudge)
    assert fg.interval(2.1, 6.2).values(levels.points[:-1]) == [0.0] * 5


def test_an_interval_in_a_run_of_a_vp_network():
    process, rows = fg.VP("scaled_linear", 0.00085, 0.012), []

    def net(x, t, c):
        rows.append(len(x))
        return 0.1 * x

    model = fg.Model(net, process, fg.Prediction("eps"), (1, 2, 2), null=torch.zeros(()))
    levels = fg.Levels.from_sigmas(process, [14.0, 6.25, 0.5])
    guidance = fg.CFG(3.0, schedule=fg.interval(1.0, 6.25))
    fg.sample(model, torch.ones(1), guidance, levels=levels)
    assert rows == [1, 2, 1]


def levels_of(steps):
    return fg.make_levels(fg.EDM(), steps)


def evaluated(solver, steps):
    plan = make_plan(fg.Prediction("edm"), levels_of(steps), solver)
    return [row.at for row in plan.rows if row.at is not None]


def test_schedules_over_the_share_of_the_steps():
    levels = evaluated(fg.ddim, 10)
    assert fg.interval(0.1, 0.6, over="step").values(levels) == [0.0] + [1.0] * 6 + [0.0] * 3
    got = fg.linear(1.0, 10.0, over="step").values(levels)
    assert got == pytest.approx(list(range(1, 11)))
    half = fg.cosine(1.0, over="step").values(levels)
    assert half == pytest.approx([0.5 * (1 - math.cos(math.pi * i / 9)) for i in range(10)])
    # a second evaluation at the step's end is judged by its own level
    heun = evaluated(fg.heun, 4)
    assert fg.interval(0.25, 0.5, over="step").values(heun) == [0, 1, 1, 1, 1, 0, 0]


def test_flow_from_pure_noise_over_steps():
    levels = fg.make_levels(fg.Flow(), 5).points[:-1]
    assert fg.linear(0.0, 1.0, over="step").values(levels) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_reg_codes_forms_are_spans():
    vp = fg.VP("linear")
    levels = fg.make_levels(vp, 4, fg.trailing).points[:-1]  # 999, 749, 499, 249
    p = [1 - at.t / 1000 for at in levels]
    got = fg.cosine(4.0, span=(1000, 0)).values(levels)
    assert got == pytest.approx([0.5 * (1 - math.cos(math.pi * one**4)) for one in p])
    start, end = 1.5, 0.5
    coded = [at.t * (end - start) / (0 - 1000) + start for at in levels]
    assert fg.linear(2 * start - end, start, span=(1000, 0)).values(levels) == pytest.approx(coded)
    edm = levels_of(6).points[:-1]
    got = fg.cosine(2.0, over="sigma", span=(80.0, 0.0)).values(edm)
    want = [0.5 * (1 - math.cos(math.pi * (1 - at.sigma / 80) ** 2)) for at in edm]
    assert got == pytest.approx(want)
    with pytest.raises(ValueError, match="span is"):
        fg.cosine(span=(1.0, 1.0))


def test_a_list_has_one_value_a_step():
    assert values_of([3.0, 2.0, 1.0], evaluated(fg.ddim, 3)) == [3.0, 2.0, 1.0]
    assert values_of([3.0, 2.0, 1.0], evaluated(fg.heun, 3)) == [3.0, 2.0, 2.0, 1.0, 1.0]
    process = fg.VP("linear")
    middles = [process.level(t) for t in (900, 750, 600, 450, 300, 150)]
    assert values_of([3.0, 2.0, 1.0], middles) == [3.0, 3.0, 2.0, 2.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="has 4 values, but the run evaluates at 3 levels"):
        values_of([1.0] * 4, evaluated(fg.ddim, 3))


def test_lists_as_scales_and_as_factors():
    model = two_classes(fg.EDM())
    by_list = fg.Sampler(model, fg.CFG([3.0, 1.0, 2.0]), steps=3)
    by_factor = fg.Sampler(model, fg.CFG(3.0, schedule=[1.0, 0.0, 0.5]), steps=3)
    assert torch.equal(by_list(0, [1]), by_factor(0, [1]))
    assert [row.pattern.net_rows for row in by_list.plan.rows[1:]] == [2, 1, 2]
    with pytest.raises(TypeError, match="a value of scale is '2', but"):
        fg.CFG([1.0, "2"])


@pytest.mark.parametrize("scale", [1 + 1e-6, 1 - 9e-7, 1.0, torch.tensor([1.0, 1 + 5e-7])])
def test_a_scale_within_one_part_in_a_million_of_1_is_off(scale):
    plan = make_plan(fg.Prediction("edm"), levels_of(3), fg.ddim, fg.CFG(scale))
    assert plan.net_rows == 3
    on = make_plan(fg.Prediction("edm"), levels_of(3), fg.ddim, fg.CFG(1 + 2e-6))
    assert on.net_rows == 6
    small = make_plan(
        fg.Prediction("edm"),
        levels_of(3),
        fg.ddim,
        fg.ICG(1.0) + fg.SIMS(two_classes(fg.EDM()), 1e-7),
    )
    assert small.net_rows == 6  # a weight is off at 0 alone


@pytest.mark.parametrize("wrap", [lambda g: g, fg.APG, fg.REG], ids=["cfg", "apg", "reg"])
def test_only_the_channels_that_are_named_are_guided(wrap):
    model = two_classes(fg.EDM(), shape=(4, 2, 2))
    level, seen = fg.Levels.from_sigmas(fg.EDM(), [2.0]), {}
    for name, guidance in {
        "none": None,
        "all": wrap(fg.CFG(3.0)),
        "three": wrap(fg.CFG(3.0, channels=range(3))),
        "named": wrap(fg.CFG(3.0, channels=(3, 0, 1, 2))),
    }.items():
        seen[name] = fg.sample(model, [0, 1], guidance, levels=level, seeds=[0, 1])
    assert not torch.allclose(seen["three"][:, :3], seen["none"][:, :3], atol=1e-2)
    if wrap is not fg.APG:  # which takes away what is along the prediction in all channels
        assert torch.allclose(seen["three"][:, 3], seen["none"][:, 3], atol=1e-6)
        assert torch.allclose(seen["three"][:, :3], seen["all"][:, :3], atol=1e-6)
    assert torch.allclose(seen["named"], seen["all"], atol=1e-6)


def test_channels_are_checked():
    model = two_classes(fg.EDM(), shape=(2, 2, 2))
    with pytest.raises(ValueError, match="channels has 2, but the model has 2 channels"):
        fg.Sampler(model, fg.CFG(2.0, channels=range(3)))
    with pytest.raises(ValueError, match="different integers"):
        fg.CFG(2.0, channels=(0, 0))


def test_held_and_cfgpp_deltas_of_some_channels():
    model = two_classes(fg.EDM(), shape=(3, 2, 2))
    held = fg.sample(model, 0, fg.CFG(3.0, every=2, channels=[0]), steps=4)
    assert not torch.allclose(held, fg.sample(model, 0, fg.CFG(3.0, every=2), steps=4))
    plain = fg.sample(model, 0, fg.CFG(0.6), "ddim_cfgpp", 4)
    same = fg.sample(model, 0, fg.CFG(0.6, channels=range(3)), "ddim_cfgpp", 4)
    assert torch.allclose(same, plain, atol=1e-5)
