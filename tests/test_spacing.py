"""The levels that each spacing visits, against the formulas and numbers that the field uses."""

import math

import pytest

import fastguide as fg
from fastguide.spacing import Levels, default_spacing

SD = fg.VP("scaled_linear", 0.00085, 0.012)


def times(levels):
    return [level.t for level in levels.points]


def test_leading_and_trailing_and_linspace_timesteps():
    # the timesteps of Lin et al. 2023, table 2, for T = 1000, N = 10 (there from 1 to 1000)
    assert times(fg.leading.run(SD, 10))[:-1] == [900 - 100 * i for i in range(10)]
    assert times(fg.leading(offset=1).run(SD, 10))[0] == 901
    assert times(fg.trailing.run(SD, 10))[:-1] == [999 - 100 * i for i in range(10)]
    evenly = times(fg.linspace.run(SD, 10))[:-1]
    assert evenly == pytest.approx([999 - 111 * i for i in range(10)])


def test_karras_is_edms_formula():
    levels = fg.karras.run(fg.EDM(), 32)
    lo, hi = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert [p.sigma for p in levels.points] == pytest.approx(
        [(hi + i / 31 * (lo - hi)) ** 7 for i in range(32)] + [0.0]
    )
    assert levels.points[0].sigma == 80.0
    # sigma_17 and sigma_22 of the 32 steps bound the interval of Kynkaanniemi et al. 2024
    assert levels.points[17].sigma == pytest.approx(1.6086, abs=1e-4)
    assert levels.points[22].sigma == pytest.approx(0.2830, abs=1e-4)


def test_karras_on_vp_keeps_the_trained_range():
    levels = fg.karras.run(SD, 20)
    assert levels.points[0].ratio == pytest.approx(SD.level(999).ratio)
    assert levels.points[-2].ratio == pytest.approx(SD.level(0).ratio)


def test_flow_shift():
    plain, shifted = fg.linspace.run(fg.Flow(), 4), fg.shifted(shift=3.0).run(fg.Flow(), 4)
    assert times(plain) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert times(shifted) == pytest.approx([3 * t / (1 + 2 * t) for t in times(plain)])
    assert times(fg.shifted(shift=1.0).run(fg.Flow(), 4)) == times(plain)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_every_run_ends_exactly_at_the_data(process, steps):
    spacing = default_spacing(process)
    for levels in (fg.make_levels(process, steps, spacing), fg.karras.run(process, steps)):
        assert len(levels.points) == steps + 1
        assert (levels.points[-1].alpha, levels.points[-1].sigma) == (1.0, 0.0)
        ratios = [p.ratio for p in levels.points]
        assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize("steps", [0, -3, 2.0, "7", True])
def test_steps_must_be_a_positive_int(steps):
    with pytest.raises(ValueError, match="steps is"):
        fg.make_levels(SD, steps)


def test_errors():
    with pytest.raises(ValueError, match="spacing is 'trailing'"):
        fg.trailing.run(fg.Flow(), 10)
    with pytest.raises(ValueError, match="steps is 2000"):
        fg.leading.run(SD, 2000)
    with pytest.raises(ValueError, match=r"'shifted'.*for Flow"):
        fg.shifted.run(SD, 10)
    with pytest.raises(ValueError, match="shift is nan"):
        fg.shifted(shift=math.nan).run(fg.Flow(), 10)
    with pytest.raises(ValueError, match="levels should fall"):
        Levels(fg.Flow(), (fg.Level(0.5, 0.5, 0.5), fg.Level(0.5, 0.5, 0.5)))
    with pytest.raises(TypeError, match="karras has no option 'roh'; its options: rho"):
        fg.karras(roh=3)
