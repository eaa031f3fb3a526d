"""A sample alone is what it is in any batch: for every method and every solver.

The exact model works sample by sample in fp64, so that nothing but the sampler could mix them; the
network of layers is a small DiT, whose matrix products round differently by their size.
"""

import exact
import pytest
import torch
from methods import LAYERED, PLAIN, energy
from test_others import weak_dit
from test_perturbation import dit, model_of

import fastguide as fg
from fastguide.solvers import SOLVERS

SEEDS = [11, 4, 90, 7]
LABELS = [0, 1, 1, 0]
SCALES = torch.tensor([1.0, 3.0, 1.7, 0.4])  # the first is off
WEIGHTS = SCALES - 1.0
CLOSE = 1e-5


def difference(model, make, batch, **run):
    """How far the samples of a batch are from those alone, beside their size."""
    labels, seeds = [LABELS[i] for i in batch], [SEEDS[i] for i in batch]
    together = fg.sample(model, labels, make(WEIGHTS[batch]), seeds=seeds, **run)
    worst = 0.0
    for i, one in zip(batch, together, strict=True):
        alone = fg.sample(model, LABELS[i : i + 1], make(WEIGHTS[i].item()), seeds=SEEDS[i], **run)
        worst = max(worst, ((one - alone[0]).abs().max() / alone.abs().max()).item())
    return worst


@pytest.mark.parametrize("process", exact.PROCESSES)
@pytest.mark.parametrize("name", PLAIN)
def test_every_method(name, process):
    model = exact.two_classes(exact.PROCESSES[process], shape=(2, 8, 8))
    assert difference(model, PLAIN[name], [0, 1, 2], steps=5) < CLOSE
    if PLAIN[name](1.0).terms()[0].branch.potential is None:
        run = {"steps": 5, "solver": "ddim_cfgpp"}
        assert difference(model, PLAIN[name], [0, 1, 2, 3], **run) < CLOSE


@pytest.mark.parametrize("name", LAYERED)
def test_every_method_of_layers(name):
    """Matrix products of another size round otherwise; nothing amplifies that here."""
    assert difference(model_of(dit()), LAYERED[name], [0, 1, 2, 3], steps=3) < CLOSE


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver(name):
    process = exact.PROCESSES["edm"]
    model = exact.two_classes(process)
    run = {"steps": 5, "solver": name}
    if name == "lcm":
        model = exact.two_classes(exact.PROCESSES["vp"])
    if "learned" in name:
        pytest.skip("needs a network with a variance")
    assert difference(model, PLAIN["cfg"], [0, 1, 2, 3], **run) < CLOSE
    make = (lambda s: fg.CFG(1.0 + s)) if "cfgpp" in name else PLAIN["apg"]
    assert difference(model, make, [3, 0, 2], **run) < CLOSE


@pytest.mark.parametrize(
    "modifier", [lambda g: fg.APG(g, momentum=0.8), lambda g: fg.Adaptive(g, 0.2)]
)
def test_a_delta_that_starts_later_for_one_sample(modifier):
    """Momentum and latches are that sample's own: red before, by 0.02 to 0.3."""
    model = exact.two_classes(exact.PROCESSES["edm"])
    run = {"steps": 8, "spacing": "karras"}

    def guidance(first, late):
        return modifier(fg.CFG(first) + fg.CFG(late, fg.interval(0.0, 2.0)))

    first, late = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.5])
    together = fg.sample(model, [0, 1], guidance(first, late), seeds=[5, 6], **run)
    for i in range(2):
        alone = guidance(first[i].item(), late[i].item())
        want = fg.sample(model, [i], alone, seeds=[5 + i], **run)[0]
        torch.testing.assert_close(together[i], want, rtol=CLOSE, atol=CLOSE)


def test_a_request_of_a_narrower_schedule_has_its_own_momentum():
    """Red before: its momentum held what the sampler's own guidance would have had."""
    model = exact.two_classes(exact.PROCESSES["edm"])

    def guidance(schedule):
        return fg.APG(fg.CFG(3.0, schedule), momentum=0.8)

    narrow = guidance(fg.interval(0.0, 2.0))
    sampler = fg.Sampler(model, guidance(None), steps=8)
    got = sampler.submit(1, 5, guidance=narrow).result(60)
    sampler.close()
    want = fg.sample(model, [1], narrow, steps=8, seeds=[5])[0]
    torch.testing.assert_close(got, want, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("modifier", [lambda g: g, lambda g: fg.REG(g, every=2)])
def test_held_deltas_that_would_be_held_at_other_evaluations_are_refused(modifier):
    every = 2 if modifier(fg.CFG(2.0)).terms()[0].branch.rectified is None else 1
    first, late = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.5])
    guidance = modifier(
        fg.CFG(first, every=every) + fg.CFG(late, fg.interval(0.0, 2.0), every=every)
    )
    model = exact.two_classes(exact.PROCESSES["edm"])
    for steps in (7, 8):  # whether the interval starts at an even evaluation or not
        try:
            together = fg.sample(model, [0, 1], guidance, steps=steps, seeds=[5, 6])
        except ValueError as error:
            assert "every is 2, but it should be 1 for amounts" in str(error)  # noqa: PT017
            break
        assert torch.isfinite(together).all()
    else:
        raise AssertionError("neither is refused")


@pytest.mark.parametrize("of", ["x", "denoised"])
def test_an_energy_that_is_not_finite_where_it_is_off(of):
    """Red before: NaN times a weight of 0."""

    def broken(x, t):
        factor = torch.tensor([torch.nan, 0.1])[: len(x)]
        return factor * x.square().flatten(1).sum(1)

    def model(x, t, cond):
        return -x / (1 + t.view(-1, 1, 1, 1))

    flow = fg.Model(model, fg.Flow(), fg.Prediction("flow"), (1, 2, 2))
    weights = torch.tensor([0.0, 1.0])
    got = fg.sample(flow, guidance=fg.EnergyGuidance(broken, weights, of), steps=3, seeds=[1, 2])
    want = fg.sample(flow, steps=3, seeds=[1, 2])
    torch.testing.assert_close(got[0], want[0], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(
    "modifier",
    [
        lambda g: g,
        lambda g: fg.APG(g, radius=2.0, momentum=-0.5),
        lambda g: fg.CFGZeroStar(g).rescale(0.7),
        lambda g: fg.Adaptive(g, 0.2),
    ],
)
def test_another_network_that_is_not_finite_where_it_is_off(modifier):
    """A weight of 0 is off, whatever the network predicts for that sample."""

    def model_with(factor):
        def net(x, t, cond):
            return factor[: len(x)].view(-1, 1, 1, 1) * x / (1 + t.view(-1, 1, 1, 1))

        return fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 2, 2))

    model, scales = model_with(-torch.ones(2)), torch.tensor([1.0, 2.0])
    run = {"steps": 4, "seeds": [1, 2]}

    def led(factor):
        guidance = modifier(fg.AutoGuidance(model_with(torch.tensor(factor)), scales))
        return fg.sample(model, guidance=guidance, **run)

    got = led([torch.nan, -0.5])
    assert torch.equal(got[0], fg.sample(model, **run)[0])
    assert torch.equal(got[1], led([1.0, -0.5])[1])


@pytest.mark.parametrize("name", ["ddim_cfgpp", "euler_ancestral_cfgpp", "dpmpp_2m_cfgpp"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: fg.PAG(2.0),
        lambda: fg.SLG(2.0),
        lambda: fg.TPG(2.0),
        lambda: fg.SAG(2.0),
        lambda: fg.TSG(2.0),
        lambda: fg.NAG(2.0),
        lambda: fg.ICG(2.0),
        lambda: fg.AutoGuidance(model_of(weak_dit()), 2.0),
        lambda: fg.EnergyGuidance(energy, 0.1),
        lambda: fg.PAG(2.0) + fg.EnergyGuidance(energy, 0.1),
    ],
)
def test_cfgpp_needs_a_negative_branch(name, make):
    """Red before: it took whatever came second as the negative."""
    with pytest.raises(ValueError, match="guidance has no negative branch, but the solver reads"):
        fg.Sampler(model_of(dit()), make(), name, steps=3)


def test_cfgpp_takes_the_negative_whatever_comes_first():
    """Red before where ICG, also a clean row of the network, came first."""
    model = model_of(dit())
    run = {"steps": 4, "solver": "ddim_cfgpp", "seeds": [3, 4]}
    for other in (fg.ICG(1.5), fg.PAG(1.0), fg.TSG(1.4)):
        one = fg.sample(model, [0, 1], fg.CFG(0.6) + other, **run)
        two = fg.sample(model, [0, 1], other + fg.CFG(0.6), **run)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    with_negative = fg.sample(model, [0, 1], fg.PAG(1.0, of="negative"), **run)
    also = fg.sample(model, [0, 1], fg.CFG(1.0) + fg.PAG(1.0, of="negative"), **run)
    torch.testing.assert_close(with_negative, also, rtol=1e-4, atol=1e-5)
    heads = exact.two_classes(exact.PROCESSES["vp"], heads=2)
    run["steps"] = 5
    single = fg.sample(heads, [0, 1], fg.Superconditioning(0.6), **run)
    double = fg.sample(exact.two_classes(exact.PROCESSES["vp"]), [0, 1], fg.CFG(0.6), **run)
    torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_zero_steps_are_for_flow_alone_and_not_for_cfgpp(steps):
    """Red before: a run of at most that many steps did not look."""
    guidance = fg.CFGZeroStar(fg.CFG(2.0), zero_steps=3)
    with pytest.raises(ValueError, match="zero_steps is 3, but it should be 0 for a network"):
        fg.Sampler(exact.two_classes(exact.PROCESSES["edm"]), guidance, steps=steps)
    flow = exact.two_classes(exact.PROCESSES["flow"])
    if steps > 1:  # a single step to the data reads no negative
        with pytest.raises(ValueError, match="zero_steps is 3, but it should be 0 for a solver"):
            fg.Sampler(flow, guidance, "ddim_cfgpp", steps=steps)


def test_a_random_embedding_is_of_the_sample_alone():
    """Red before: numbers [B] were averaged over the batch, and one number alone was NaN."""
    from fastguide.sampling.conditions import random_condition

    model = fg.Model(lambda x, t, c: x, fg.Flow(), fg.Prediction("flow"), (1, 2, 2), null=None)
    cond = {"pooled": torch.randn(4, 3), "scalar": torch.tensor([1.0, 5.0, -2.0, 9.0])}
    cond["one"] = cond["scalar"].view(4, 1, 1)
    seeds = torch.tensor(SEEDS)
    together = random_condition(model, cond, seeds)
    for i in range(4):
        own = {name: leaf[i : i + 1] for name, leaf in cond.items()}
        alone = random_condition(model, own, seeds[i : i + 1])
        for name, leaf in together.items():
            assert leaf[i].isfinite().all(), name
            torch.testing.assert_close(leaf[i : i + 1], alone[name])
