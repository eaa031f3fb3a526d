"""Autoguidance, SIMS, ICG, TSG and held deltas against their plain formulas."""

import zlib

import pytest
import torch
from plain import Treat
from test_perturbation import NAMES, STEPS, Plain, dit, model_of, unet

import fastguide as fg
from fastguide import ops
from fastguide.sampling.conditions import random_condition


def weak_dit(**config):
    net = dit(depth=2, **config)
    for p in net.parameters():
        p.mul_(1.1)
    return net


def autoguided(weight, cfg=0.0):
    weak = weak_dit().double()

    def guided(run, evaluation, x, t):
        base = run.pred(x, t)
        out = base + weight * (base - weak(x, t, run.cond))
        return out + cfg * (base - run.pred(x, t, run.null)) if cfg else out

    return guided


def icg(run, evaluation, x, t):
    seeds = ops.derive_seeds(torch.tensor(list(run.seeds)), evaluation)
    other = random_condition(run.model, run.cond, seeds)
    base = run.pred(x, t)
    return base + 2.0 * (base - run.pred(x, t, other))


def tsg(layers, strength, power, width=48):
    def guided(run, evaluation, x, t):
        seeds = ops.derive_seeds(torch.tensor(list(run.seeds)), evaluation)
        noise = fg.noise(seeds, (width,), zlib.crc32(b"time")).double()
        size = strength * float(t[0]) ** power  # of flow: sigma / (alpha + sigma) is t
        treat = Treat("time", layers, noise=size * noise)
        base = run.pred(x, t)
        return base + 1.5 * (base - run.pred(x, t, treat=treat))

    return guided


def held(every, weight):
    kept = {}

    def guided(run, evaluation, x, t):
        base = run.pred(x, t)
        if (evaluation - 1) % every == 0:
            kept["delta"] = base - run.pred(x, t, run.null)
        return base + weight * kept["delta"]

    return guided


CASES = {
    "autoguidance": (lambda: fg.AutoGuidance(model_of(weak_dit()), 2.0), lambda: autoguided(1.0)),
    "autoguidance and cfg": (
        lambda: fg.CFG(1.5) + fg.AutoGuidance(model_of(weak_dit()), 2.0),
        lambda: autoguided(1.0, 0.5),
    ),
    "sims": (lambda: fg.SIMS(model_of(weak_dit()), 0.8), lambda: autoguided(0.8)),
    "icg": (lambda: fg.ICG(3.0), lambda: icg),
    "tsg": (lambda: fg.TSG(2.5, 0.5, 1.0), lambda: tsg(("time",), 0.5, 1.0)),
    "tsg, first layers": (
        lambda: fg.TSG(2.5, 2.0, 0.5, layers=[0, 1]),
        lambda: tsg(NAMES[:2], 2.0, 0.5),
    ),
    "cfg, every 2": (lambda: fg.CFG(3.0, every=2), lambda: held(2, 2.0)),
    "cfg, every 3": (lambda: fg.CFG(3.0, every=3), lambda: held(3, 2.0)),
}


@pytest.mark.parametrize("rows", ["batched", "sequential"])
@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("name", CASES)
def test_it_equals_its_plain_formula(name, batch, rows):
    guidance, guided = (make() for make in CASES[name])
    cond, seeds = torch.arange(batch) % 5, range(20, 20 + batch)
    want = Plain(model_of(dit().double()), cond, seeds, guided).run(seeds)
    model = model_of(dit())
    got = fg.Sampler(model, guidance, steps=STEPS, rows=rows)(cond, seeds)
    scale = want.abs().max()
    assert (got - want).abs().max() < 2e-5 * scale
    assert (got - fg.sample(model, cond, steps=STEPS, seeds=seeds)).abs().max() > 1e-3 * scale


RESIDUALS = ("input.1.residual", "input.2.down", "input.3.residual", "middle.first", "middle.last")
RESIDUALS += tuple(f"output.{name}" for name in ("0.residual", "1.residual", "1.up", "2.residual"))
RESIDUALS += ("output.3.residual",)


@pytest.mark.parametrize("rows", ["batched", "sequential"])
@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("time", ("time",)),
        ("all", RESIDUALS),
        ("mid", ("middle.first", "middle.last")),
        (["output.1.up", 1], ("input.2.down", "output.1.up")),
    ],
)
def test_the_residual_blocks_of_a_unet_read_their_own_time(layers, names, rows):
    cond, seeds = torch.arange(3), range(20, 23)
    guided = tsg(names, 2.0, 0.5, 64)
    want = Plain(model_of(unet().double()), cond, seeds, guided).run(seeds)
    sampler = fg.Sampler(model_of(unet()), fg.TSG(2.5, 2.0, 0.5, layers), steps=STEPS, rows=rows)
    assert (sampler(cond, seeds) - want).abs().max() < 2e-5 * want.abs().max()
    off = fg.sample(model_of(unet()), cond, steps=STEPS, seeds=seeds)
    assert (want - off).abs().max() > 1e-3 * want.abs().max()


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (lambda: fg.TSG(2.0, layers="input.3"), "'input.3', but 1 layers start with that"),
        (lambda: fg.TSG(2.0, layers="middle"), "'middle', but 2 layers start with that"),
        (lambda: fg.PAG(1.0, layers="middle.first"), "'middle.first', but there is none"),
        (lambda: fg.SLG(1.0, layers="output.1.up"), "'output.1.up', but there is none"),
    ],
)
def test_layers_of_a_unet_are_of_attention_or_of_the_time(guidance, message):
    with pytest.raises(ValueError, match=message):
        fg.Sampler(model_of(unet()), guidance(), steps=STEPS)


@pytest.mark.parametrize(
    "guidance",
    [
        lambda: fg.AutoGuidance(model_of(weak_dit()), 1.0),
        lambda: fg.SIMS(model_of(weak_dit()), 0.0),
        lambda: fg.ICG(1.0),
        lambda: fg.TSG(1.0),
        lambda: fg.CFG(1.0, every=3),
    ],
)
def test_off_runs_no_extra_row(guidance):
    model, cond = model_of(dit()), torch.arange(3)
    off, without = fg.Sampler(model, guidance(), steps=STEPS), fg.Sampler(model, steps=STEPS)
    assert off.plan.net_rows == without.plan.net_rows
    assert torch.equal(off(cond, range(3)), without(cond, range(3)))


def test_held_deltas_cost_one_pass_in_k():
    model = model_of(dit())
    rows = [fg.Sampler(model, fg.CFG(3.0, every=k), steps=12).plan.net_rows for k in (1, 2, 3, 4)]
    assert rows == [24, 18, 16, 15]
    both = fg.CFG(3.0, every=2) + fg.PAG(1.0, every=3)
    assert fg.Sampler(model, both, steps=12).plan.net_rows == 12 + 6 + 4
    once = fg.sample(model, torch.arange(2), fg.CFG(3.0), steps=STEPS, seeds=range(2))
    same = fg.sample(model, torch.arange(2), fg.CFG(3.0, every=1), steps=STEPS, seeds=range(2))
    assert torch.equal(once, same)


def test_a_held_delta_is_computed_anew_where_an_interval_begins():
    interval = fg.interval(0.3, 1.5)
    plan = fg.Sampler(model_of(dit()), fg.CFG(3.0, interval, every=3), steps=16).plan
    active = [len(row.pattern.branches) == 2 for row in plan.rows[1:]]
    computed = [row.pattern.net_rows == 2 for row in plan.rows[1:]]
    first = active.index(True)
    count = sum(active)
    assert count > 3
    assert first > 0
    assert [i - first for i, on in enumerate(computed) if on] == list(range(0, count, 3))


@pytest.mark.parametrize("every", [2, 3])
def test_a_held_perturbation_and_a_held_network(every):
    model, cond = model_of(dit()), torch.arange(3)
    for guidance in (
        fg.PAG(1.0, every=every),
        fg.SAG(1.0, every=every),
        fg.ICG(2.0, every=every),
        fg.AutoGuidance(model_of(weak_dit()), 2.0, every=every),
        fg.CFG(3.0) + fg.PAG(1.0, of="negative", every=every),
    ):
        sampler = fg.Sampler(model, guidance, steps=6)
        assert torch.isfinite(sampler(cond, range(3))).all()
        full = [one for one in sampler.plan.patterns if not one.held]
        assert sampler.plan.net_rows < 6 * max(one.net_rows for one in full)


def test_a_random_condition_is_never_the_samples_own():
    model = model_of(dit())
    cond = torch.arange(6).repeat(2000)  # 5 is the null class
    drawn = random_condition(model, cond, torch.arange(12000))
    assert (drawn != cond).all()
    assert drawn.min() == 0
    assert drawn.max() == 4
    for own in range(6):  # the others equally often
        counts = torch.bincount(drawn[cond == own], minlength=5).double()
        expected = 2000 / (5 if own == 5 else 4)
        others = [c for c in range(5) if c != own]
        assert ((counts[others] - expected).abs() < 5 * expected**0.5).all()
    again = random_condition(model, cond[7:9], torch.arange(7, 9))
    assert torch.equal(again, drawn[7:9])


def test_a_random_embedding_has_the_moments_of_the_samples_own():
    model = fg.Model(
        lambda x, t, c: x,
        fg.Flow(),
        fg.Prediction("flow"),
        (1, 4, 4),
        null={"text": torch.zeros(64, 32), "mask": torch.ones(64, dtype=torch.bool)},
    )
    cond = {"text": 3.0 + 0.5 * torch.randn(4, 64, 32), "mask": torch.ones(4, 64).bool()}
    drawn = random_condition(model, cond, torch.arange(4))
    assert torch.equal(drawn["mask"], cond["mask"])
    assert (drawn["text"].mean((1, 2)) - 3.0).abs().max() < 0.06
    assert (drawn["text"].std((1, 2)) - 0.5).abs().max() < 0.04
    correlation = torch.corrcoef(torch.stack([drawn["text"][0], cond["text"][0]]).flatten(1))
    assert correlation[0, 1].abs() < 0.1


def test_draws_depend_on_the_samples_seed_alone():
    model, cond = model_of(dit()), torch.arange(4)
    for guidance in (fg.ICG(3.0), fg.TSG(3.0)):
        batch = fg.sample(model, cond, guidance, steps=STEPS, seeds=[3, 1, 4, 5])
        alone = fg.sample(model, cond[2:3], guidance, steps=STEPS, seeds=[4])
        torch.testing.assert_close(batch[2:3], alone, rtol=1e-4, atol=1e-4)


def test_an_unconditional_weak_network_takes_no_condition():
    weak = fg.nets.DiT(channels=2, width=48, depth=1, patch=2, classes=0).eval()
    for p in weak.parameters():
        torch.nn.init.normal_(p, std=0.1)
    other = fg.Model(weak, fg.Flow(), fg.Prediction("flow"), (2, 8, 8))
    model, cond = model_of(dit()), torch.arange(3)
    got = fg.sample(model, cond, fg.AutoGuidance(other, 2.0), steps=STEPS, seeds=range(3))
    assert (got - fg.sample(model, cond, steps=STEPS, seeds=range(3))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (lambda: fg.CFG(2.0, every=0), "every is 0"),
        (lambda: fg.PAG(2.0, every=1.5), "every is 1.5"),
        (
            lambda: fg.AutoGuidance(model_of(weak_dit(), (2, 8, 12)), 2.0),
            r"another model whose shape is \(2, 8, 12\)",
        ),
        (
            lambda: fg.AutoGuidance(model_of(weak_dit(), process=fg.VP("cosine")), 2.0),
            "another model whose process is VP",
        ),
        (lambda: fg.TSG(2.0, strength=-1.0), "strength is -1.0"),
        (lambda: fg.PAG(2.0, layers="time"), "only TSG perturbs the time embedding"),
    ],
)
def test_errors_name_the_argument(guidance, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fg.Sampler(model_of(dit()), guidance(), steps=STEPS)


def test_icg_needs_another_class():
    net = fg.nets.DiT(channels=2, width=48, depth=1, patch=2, classes=1)
    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (2, 8, 8), null=1)
    with pytest.raises(ValueError, match="draws another class, but the model has 1"):
        fg.Sampler(model, fg.ICG(2.0))
    free = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (2, 8, 8))
    with pytest.raises(ValueError, match=r"model\.null is None"):
        fg.Sampler(free, fg.ICG(2.0))


def test_a_weak_model_of_another_kind():
    with pytest.raises(TypeError, match="weak is a DiT"):
        fg.AutoGuidance(weak_dit(), 2.0)
