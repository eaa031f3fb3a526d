"""Whole runs of the bundled model: what the loop costs, what one pass and an interval save."""

from __future__ import annotations

import pytest
import torch
from forwards import bare_forwards

import fastguide as fg

BATCH, STEPS = 64, 6


@pytest.fixture(scope="module")
def model():
    return fg.load("fashion")


@pytest.fixture(scope="module")
def labels():
    return torch.arange(BATCH) % 10


def timed(sampler, labels):
    return lambda: sampler(labels, range(BATCH))


def test_sample_against_bare_forwards(ratio, model, labels):
    sampler = fg.Sampler(model, fg.Superconditioning(3.0), steps=STEPS)
    forwards = bare_forwards(model, sampler.plan, labels)
    name = "sample, single pass, batch 64, against its bare network forwards"
    ratio(name, timed(sampler, labels), forwards, limit=1.01, rounds=15)


def test_single_pass_against_two(ratio, model, labels):
    one = fg.Sampler(model, fg.Superconditioning(3.0), steps=STEPS)
    two = fg.Sampler(model, fg.CFG(3.0), steps=STEPS)
    name = "single-pass superconditioning, batch 64, against two-pass CFG"
    ratio(name, timed(one, labels), timed(two, labels), limit=0.54)


def test_interval_over_half_the_evaluations(ratio, model, labels):
    full = fg.Sampler(model, fg.CFG(3.0), steps=STEPS)
    guidance = fg.CFG(3.0, fg.interval(0.3, 0.7, over="t"))
    half = fg.Sampler(model, guidance, steps=STEPS)
    assert half.plan.net_rows == STEPS + STEPS // 2
    name = "CFG in an interval of half the evaluations, against CFG in all"
    ratio(name, timed(half, labels), timed(full, labels), limit=0.78)


def test_bf16_against_fp32(ratio, labels, model):
    half = fg.Sampler(
        fg.load("fashion", dtype=torch.bfloat16), fg.Superconditioning(3.0), steps=STEPS
    )
    full = fg.Sampler(model, fg.Superconditioning(3.0), steps=STEPS)
    name = "bf16 network, batch 64, against fp32"
    ratio(name, timed(half, labels), timed(full, labels))
