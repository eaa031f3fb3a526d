"""Schedules as clean formulas, guidances as sums of terms, and their errors."""

import math

import pytest
import torch

import fastguide as fg
from fastguide.guidance.base import Branch

LEVELS = [fg.VP("linear").level(t) for t in (999.0, 800.0, 500.0, 100.0, 0.0)]
SIGMAS = [fg.EDM().level(s) for s in (80.0, 2.9, 1.0, 0.3, 0.28)]


def weights(guidance, levels=LEVELS):
    (term,) = guidance.terms()
    return term.weights(levels)[:, 0].tolist()


def test_linear_runs_from_start_to_end():
    assert fg.linear(1.5, 0.5).values(LEVELS) == pytest.approx(
        [1.5 - (999 - t) / 999 for t in (999, 800, 500, 100, 0)]
    )
    over_sigma = fg.linear(4.0, 1.0, over="sigma").values(SIGMAS)
    assert over_sigma == pytest.approx(
        [1 + 3 * (s - 0.28) / 79.72 for s in (80, 2.9, 1, 0.3, 0.28)]
    )


def test_cosine_rises_from_nothing_to_all():
    values = fg.cosine(2.0).values(LEVELS)
    assert values == pytest.approx(
        [0.5 - 0.5 * math.cos(math.pi * ((999 - t) / 999) ** 2) for t in (999, 800, 500, 100, 0)]
    )
    assert (values[0], values[-1]) == (0.0, 1.0)


def test_interval_is_closed_and_reads_sigma_or_t():
    assert fg.interval(0.3, 2.9).values(SIGMAS) == [0, 1, 1, 1, 0]
    assert fg.interval(100, 800, over="t").values(LEVELS) == [0, 1, 1, 1, 0]
    # the sigma of a variance-preserving level is its sigma / alpha
    ratio = LEVELS[2].ratio
    assert fg.interval(ratio, ratio).values(LEVELS) == [0, 0, 1, 0, 0]


def test_a_scale_is_off_at_one_and_scheduled_around_it():
    assert weights(fg.CFG(4.0)) == [3.0] * 5
    assert weights(fg.CFG(1.0)) == [0.0] * 5
    assert weights(fg.CFG(4.0, fg.interval(0.3, 2.9)), SIGMAS) == [0, 3, 3, 3, 0]
    assert weights(fg.CFG(fg.linear(3.0, 1.0)))[::4] == [2.0, 0.0]
    assert weights(fg.CFG(lambda level: 1 + level.sigma**2), SIGMAS) == pytest.approx(
        [s * s for s in (80, 2.9, 1, 0.3, 0.28)]
    )


def test_scale_per_sample():
    (term,) = fg.CFG(torch.tensor([1.0, 2.5]), schedule=fg.constant(2.0)).terms()
    assert term.weights(LEVELS).tolist() == [[0.0, 3.0]] * 5
    assert term.batch == 2


def test_guidances_add_up():
    both = fg.CFG(3.0) + fg.Superconditioning(2.0) + fg.CFG(1.5)
    assert [(t.branch, t.weights(LEVELS)[0].item()) for t in both.terms()] == [
        (Branch("negative"), 2.0),
        (Branch("cond", 1), 1.0),
        (Branch("negative"), 0.5),
    ]
    with pytest.raises(TypeError):
        fg.CFG(3.0) + 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fg.CFG(math.nan), ValueError, "scale is nan"),
        (lambda: fg.CFG(math.inf), ValueError, "scale is inf"),
        (lambda: fg.CFG(torch.tensor([1.0, math.nan])), ValueError, "scale is tensor"),
        (lambda: fg.CFG(torch.ones(2, 2)), ValueError, r"scale is torch.float32 of shape \(2, 2\)"),
        (lambda: fg.CFG(torch.ones(2, dtype=torch.int64)), ValueError, "scale is torch.int64"),
        (lambda: fg.CFG("big"), TypeError, "scale is 'big'"),
        (lambda: fg.Superconditioning(None), TypeError, "scale is None"),
        (lambda: weights(fg.CFG(lambda _: math.nan)), ValueError, "scale or its schedule is not"),
        (lambda: fg.interval(3.0, 1.0), ValueError, "low, high are 3.0, 1.0"),
        (lambda: fg.interval(0, 1, over="snr"), ValueError, "over is 'snr'"),
        (lambda: fg.cosine(0.0), ValueError, "power is 0.0"),
        (
            lambda: fg.linear(1, 2, over="sigma").values([fg.Flow().level(1.0), *SIGMAS]),
            ValueError,
            "alpha 0",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
