"""The plan: patterns, coefficients, masks."""

import exact
import pytest
import torch

import fastguide as fg
from fastguide.common.options import Configured
from fastguide.engine.plan import make_plan
from fastguide.guidance.base import POSITIVE, Branch
from fastguide.ops import table as tables
from fastguide.ops.table import Column, Extra


def plan_for(process, guidance=None, solver=fg.ddim, steps=6, **kwargs):
    levels = fg.make_levels(process, steps)
    return make_plan(exact.prediction_for(process), levels, solver, guidance, **kwargs)


def test_start_and_one_row_per_update():
    plan = plan_for(fg.EDM(), solver=fg.heun)
    assert len(plan.rows) == 1 + 11
    assert plan.evaluations == 11
    start = tables.matrix(plan.table[0])
    assert start[0].tolist() == [0, 0, 0, 80.0, 0]  # x = 80 noise; slots are x and half
    assert plan.rows[0].draws
    assert not any(row.draws for row in plan.rows[1:])
    assert plan.slots == ("x", "half")
    # the Euler prediction writes both slots, the correction only x; the half is read once
    assert [row.writes for row in plan.rows[1:4]] == [0b11, 0b01, 0b11]
    assert [row.reads for row in plan.rows[1:4]] == [0b01, 0b11, 0b01]


def test_the_start_has_the_marginals_size():
    for process, std in ((fg.VP("cosine"), 1.0), (fg.EDM(sigma_max=50.0), 50.0), (fg.Flow(), 1.0)):
        assert tables.matrix(plan_for(process).table[0])[0, -2].item() == std


def test_an_interval_takes_the_negative_rows_out():
    guidance = fg.CFG(3.0, fg.interval(0.3, 3.0))
    plan = plan_for(fg.EDM(), guidance, steps=18)
    inside = [0.3 <= row.at.sigma <= 3.0 for row in plan.rows[1:]]
    assert 0 < sum(inside) < 18
    for row, on in zip(plan.rows[1:], inside, strict=True):
        assert row.pattern.branches == ((POSITIVE, Branch("negative")) if on else (POSITIVE,))
    assert plan.net_rows == 18 + sum(inside)
    assert plan_for(fg.EDM(), fg.CFG(1.0), steps=18).net_rows == 18


def test_heuns_second_stage_is_judged_by_its_own_level():
    guidance = fg.CFG(3.0, fg.interval(0.3, 3.0))
    plan = plan_for(fg.EDM(), guidance, solver=fg.heun, steps=18)
    for row in plan.rows[1:]:
        assert (len(row.pattern.branches) == 2) == (0.3 <= row.at.sigma <= 3.0)


def test_a_second_head_costs_no_row():
    plan = plan_for(fg.Flow(), fg.Superconditioning(3.0))
    assert plan.net_rows == 6
    assert plan.rows[1].pattern.branches == (POSITIVE, Branch("cond", 1))
    both = plan_for(fg.Flow(), fg.Superconditioning(3.0) + fg.CFG(2.0))
    assert both.net_rows == 12
    assert both.weights[1, 0].tolist() == [1.0, 1.0, 2.0, 1.0]


def test_weights_of_one_branch_add_up_and_may_cancel():
    plan = plan_for(fg.Flow(), fg.CFG(3.0) + fg.CFG(2.0))
    assert plan.weights[1, 0].tolist() == [1.0, 1.0, 3.0]
    assert plan_for(fg.Flow(), fg.CFG(3.0) + fg.CFG(-1.0)).net_rows == 6


def test_per_sample_scales_run_the_rows_if_any_sample_needs_them():
    plan = plan_for(fg.Flow(), fg.CFG(torch.tensor([1.0, 4.0])))
    assert plan.weights[1].tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 3.0]]
    assert plan.batch == 2
    assert plan_for(fg.Flow(), fg.CFG(torch.ones(2))).net_rows == 6


def test_coefficients_are_multiplied_out_in_double_precision(process):
    prediction = exact.prediction_for(process)
    plan = plan_for(process, clamp=(-1.0, 2.0))
    for row, values, following in zip(
        plan.rows[1:], plan.table[1:], [*plan.rows[2:], None], strict=True
    ):
        a, b = prediction.denoised(row.at)
        assert values[Column.OF_X].item() == pytest.approx(a, rel=1e-6)
        assert values[Column.OF_PREDICTION].item() == pytest.approx(b, rel=1e-6)
        assert values[[Column.LOW, Column.HIGH]].tolist() == [-1.0, 2.0]
        scale = 1.0 if following is None else prediction.input_scale(following.at)
        assert values[Column.INPUT_SCALE].item() == pytest.approx(scale, rel=1e-6)


def test_preview_is_one_more_slot():
    plan = plan_for(fg.Flow(), preview=True)
    assert plan.slots == ("x", "preview")
    assert tables.matrix(plan.table[3])[1].tolist() == [0, 0, 1, 0, 0]


def test_a_solver_that_reads_the_negative_gets_its_rows_whatever_their_weight():
    guidance = fg.CFG(3.0, fg.interval(0.3, 3.0))
    plan = plan_for(fg.EDM(), guidance, fg.ddim_cfgpp, steps=18)
    assert [row.extra for row in plan.rows] == [Extra.NONE] + [Extra.NEGATIVE] * 17 + [Extra.NONE]
    assert all(len(row.pattern.branches) == 2 for row in plan.rows[1:-1])
    assert plan_for(fg.EDM(), None, fg.ddim_cfgpp).net_rows == 6
    matrix = tables.matrix(plan.table[3])
    now, to = plan.rows[3].at, plan.rows[4].at
    assert matrix[0].tolist() == pytest.approx([to.sigma / now.sigma, 1, 0, -to.sigma / now.sigma])


def test_errors():
    @Configured
    def careless(levels):
        yield fg.Update(at=levels.points[0], x={"history": 1.0})

    @Configured
    def blind(levels):
        yield fg.Update(at=None, x={"denoised": 1.0})
        yield fg.Update(at=levels.points[0], x={"denoised": 1.0})

    @Configured
    def hoarder(levels):
        yield fg.Update(levels.points[0], {"x": 1.0}, {f"h{i}": {"x": 1.0} for i in range(8)})

    @Configured
    def greedy(levels):
        yield fg.Update(levels.points[0], {"unclamped": 1.0, "negative": 1.0})

    with pytest.raises(ValueError, match="greedy reads both"):
        plan_for(fg.Flow(), solver=greedy)
    with pytest.raises(ValueError, match="careless reads slot 'history'"):
        plan_for(fg.Flow(), solver=careless)
    with pytest.raises(ValueError, match="blind reads denoised"):
        plan_for(fg.Flow(), solver=blind)
    with pytest.raises(ValueError, match="hoarder keeps 9 slots"):
        plan_for(fg.Flow(), solver=hoarder)
    with pytest.raises(ValueError, match=r"batches of \[2, 3\]"):
        plan_for(fg.Flow(), fg.CFG(torch.ones(2)) + fg.CFG(torch.ones(3)))
    with pytest.raises(ValueError, match=r"prediction is 'eps'.*alpha is 0"):
        make_plan(fg.Prediction("eps"), fg.make_levels(fg.Flow(), 3), fg.ddim)
