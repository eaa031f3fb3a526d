"""REG: its factor, its modes, and what they cost."""

import math

import exact
import pytest
import torch
from evaluation import evaluated
from plain import Treat
from test_others import weak_dit
from test_perturbation import NAMES, STEPS, Plain, dit, model_of, unet

import fastguide as fg
from fastguide.nets import GaussianMixture
from fastguide.ops.table import Column

PREDICTIONS = {"vp": ("eps", "x0", "v"), "edm": ("edm", "x0"), "flow": ("flow", "x0", "eps")}


def level_at(process, ratio):
    """The level of a process at sigma / alpha = ratio; its time is only read by the network."""
    if isinstance(process, fg.EDM):
        return fg.Level(ratio, 1.0, ratio)
    if isinstance(process, fg.Flow):
        return fg.Level(ratio / (1 + ratio), 1 / (1 + ratio), ratio / (1 + ratio))
    alpha = 1 / math.sqrt(1 + ratio**2)
    ratios = torch.tensor(process.log_ratios).exp()
    t = float((ratios < ratio).sum()) - 1
    low, high = ratios[int(t)].log(), ratios[int(t) + 1].log()
    return fg.Level(t + float((math.log(ratio) - low) / (high - low)), alpha, ratio * alpha)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 8.0])
def test_the_factor_is_the_same_in_every_prediction(ratio):
    cond, y = torch.tensor([0, 1, 1]), (1 + ratio) * fg.noise(range(3), (2, 4, 4))
    factors = {}
    for name, process in exact.PROCESSES.items():
        level = level_at(process, ratio)
        for kind in PREDICTIONS[name]:
            model = exact.two_classes(process, fg.Prediction(kind, sigma_data=0.5))
            evaluate, _ = evaluated(model, fg.REG(fg.CFG(2.0)), level, level.alpha * y, cond)
            factors[name, kind] = evaluate.predict.factor
    first = next(iter(factors.values()))
    assert first.std() > 1e-3
    for key, factor in factors.items():
        # the network's answer is fp32; the Jacobian of a noise divides what is left by sigma
        assert (factor - first).abs().max() < 1e-5 * max(1.0, ratio), key


def gaussians(mean1=0.5, std1=0.5, mean0=0.0, std0=1.0):
    """Conditional N(mean1, std1^2), unconditional N(mean0, std0^2), as one network: class 0 and the
    null class of exact denoisers.
    """
    process, prediction = fg.VP("cosine"), fg.Prediction("eps")
    nets = [
        GaussianMixture(torch.tensor([[mean]]), [std], [1.0], process, prediction)
        for mean, std in ((mean1, std1), (mean0, std0))
    ]

    def net(x, t, cond):
        return torch.where((cond == 0).view(-1, 1), nets[0](x, t), nets[1](x, t))

    return fg.Model(net, process, prediction, (1,), null=1)


def golden(x, level, w, mean1=0.5, std1=0.5, mean0=0.0, std0=1.0):
    """-sigma d log E_t / dx, with E_t(x) the mean of (p_1 / p_0)^w over p(x_0 | x)."""
    ratio2 = level.sigma**2 / level.alpha**2
    v = 1 / (1 / std1**2 + 1 / ratio2)
    mu = v * (mean1 / std1**2 + x / level.alpha / ratio2)
    a, b = w * (1 / std1**2 - 1 / std0**2), w * (mean1 / std1**2 - mean0 / std0**2)
    slope = v * level.alpha / level.sigma**2 * (b - a * mu) / (1 + a * v)
    return -level.sigma * slope


def test_the_errors_to_the_golden_of_two_gaussians():
    """At alpha^2 = 1/2, w = 1, over an even grid of x in [-3, 3]: CFG 0.628, REG 0.042."""
    model, level = gaussians(), level_at(fg.VP("cosine"), 1.0)
    x = torch.linspace(-3.0, 3.0, 601).view(-1, 1)
    cond = torch.zeros(len(x), dtype=torch.int64)
    want, errors = golden(x.double(), level, 1.0), {}
    for name, guidance in {"CFG": fg.CFG(2.0), "REG": fg.REG(fg.CFG(2.0))}.items():
        _, found = evaluated(model, guidance, level, x, cond)
        positive, negative = (branch.double() for branch in found.branches)
        factor = 1.0 if found.factor is None else found.factor.double()
        move = factor * (positive - negative)
        errors[name] = float((move - want).square().mean().sqrt())
    assert errors["CFG"] == pytest.approx(0.628, abs=0.001)
    assert errors["REG"] == pytest.approx(0.042, abs=0.001)
    # and the closed form of REG itself: both scores are linear in x
    var1, var0 = (level.alpha**2 * s**2 + level.sigma**2 for s in (0.5, 1.0))
    eps1, eps0 = level.sigma * (x - level.alpha * 0.5) / var1, level.sigma * x / var0
    c = 1 - level.sigma**2 / var1
    torch.testing.assert_close(move, (c * (eps1 - eps0)).double(), rtol=1e-4, atol=1e-5)


def image(run, x, t, cond=None):
    """The flow's denoised image, and the prediction."""
    prediction = run.pred(x, t, cond)
    return x - t.view(-1, 1, 1, 1) * prediction, prediction


def factored(run, x, t, delta, mode):
    """REG's delta, in fp64 through plain autograd."""
    alpha = 1.0 - t.view(-1, 1, 1, 1)
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        clean, _ = image(run, leaf, t)
        if mode == "chain":
            return alpha * torch.autograd.grad(clean, leaf, delta)[0]
        if mode == "vjp":
            return alpha * torch.autograd.grad(clean.sum(), leaf)[0] * delta
    h = 0.003 * t.view(-1, 1, 1, 1)
    with torch.no_grad():
        return alpha * (image(run, x + h, t)[0] - image(run, x, t)[0]) / h * delta


def rectified(mode, weight, deltas, on=lambda evaluation, t: True, every=1):
    kept = {}

    def guided(run, evaluation, x, t):
        base = run.pred(x, t)
        delta = deltas(run, x, t, base)
        if not on(evaluation, t):
            return base + weight * delta
        if every > 1:
            if "start" not in kept:
                kept["start"] = evaluation
            if (evaluation - kept["start"]) % every == 0:
                kept["factor"] = factored(run, x, t, torch.ones_like(x), mode)
            return base + weight * kept["factor"] * delta
        return base + weight * factored(run, x, t, delta, mode)

    return guided


def to_null(run, x, t, base):
    return base - run.pred(x, t, run.null)


def to_pag(run, x, t, base):
    return base - run.pred(x, t, treat=Treat("pag", NAMES[2:3]))


def weak_delta(run, x, t, base):
    return base - weak_dit().double()(x, t, run.cond)


MODES = ("vjp", "chain", "difference")
CASES = {
    **{
        f"cfg, {mode}": (
            lambda mode=mode: fg.REG(fg.CFG(3.0), mode),
            lambda mode=mode: rectified(mode, 2.0, to_null),
        )
        for mode in MODES
    },
    **{
        f"pag, {mode}": (
            lambda mode=mode: fg.REG(fg.PAG(1.5), mode),
            lambda mode=mode: rectified(mode, 1.5, to_pag),
        )
        for mode in MODES
    },
    "autoguidance": (
        lambda: fg.REG(fg.AutoGuidance(model_of(weak_dit()), 2.0)),
        lambda: rectified("vjp", 1.0, weak_delta),
    ),
    "a sum": (
        lambda: fg.REG(fg.CFG(3.0) + fg.PAG(1.0)),
        lambda: rectified("vjp", 1.0, lambda *a: 2.0 * to_null(*a) + to_pag(*a)),
    ),
    "a sum of which one is": (
        lambda: fg.REG(fg.CFG(3.0)) + fg.PAG(1.0),
        lambda: (
            lambda run, e, x, t: (
                rectified("vjp", 2.0, to_null)(run, e, x, t) + to_pag(run, x, t, run.pred(x, t))
            )
        ),
    ),
    "checkpointed": (
        lambda: fg.REG(fg.CFG(3.0), checkpoint=True),
        lambda: rectified("vjp", 2.0, to_null),
    ),
    "every 2": (
        lambda: fg.REG(fg.CFG(3.0), every=2),
        lambda: rectified("vjp", 2.0, to_null, every=2),
    ),
    "every 2, difference": (
        lambda: fg.REG(fg.CFG(3.0), "difference", every=2),
        lambda: rectified("difference", 2.0, to_null, every=2),
    ),
    "within": (
        lambda: fg.REG(fg.CFG(3.0), within=fg.interval(0.0, 0.7, over="t")),
        lambda: rectified("vjp", 2.0, to_null, on=lambda e, t: float(t[0]) <= 0.7),
    ),
}


@pytest.mark.parametrize("rows", ["batched", "sequential"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_it_equals_its_plain_formula(name, batch, rows):
    guidance, guided = (make() for make in CASES[name])
    cond, seeds = torch.arange(batch) % 5, range(20, 20 + batch)
    want = Plain(model_of(dit().double()), cond, seeds, guided).run(seeds).detach()
    model = model_of(dit())
    got = fg.Sampler(model, guidance, steps=STEPS, rows=rows)(cond, seeds)
    scale = want.abs().max()
    # a difference of two fp32 predictions over h = 0.003 sigma
    limit = 2e-3 if "difference" in name else 2e-5
    assert (got - want).abs().max() < limit * scale
    assert (got - fg.sample(model, cond, fg.CFG(3.0), steps=STEPS, seeds=seeds)).abs().max() > (
        5e-3 * scale
    )


def test_all_modes_agree_where_the_jacobian_is_symmetric(process):
    model, cond = exact.two_classes(process), torch.tensor([0, 1, 0])
    levels = fg.karras(sigma_max=10.0).run(process, 8)
    vjp, difference = (
        fg.sample(model, cond, fg.REG(fg.CFG(2.0), mode), levels=levels, seeds=range(3))
        for mode in ("vjp", "difference")
    )
    plain = fg.sample(model, cond, fg.CFG(2.0), levels=levels, seeds=range(3))
    assert (vjp - difference).abs().max() < 0.02 * (vjp - plain).abs().max()


def test_superconditioning_with_reg_is_one_pass(process):
    """The second head's delta, times the gradient of the first."""
    two = exact.two_classes(process, heads=2)
    one = exact.two_classes(process)
    cond, levels = torch.tensor([0, 1, 1]), fg.karras(sigma_max=10.0).run(process, 5)
    sampler = fg.Sampler(two, fg.REG(fg.Superconditioning(2.0)), levels=levels)
    assert sampler.plan.net_rows == 5
    want = fg.sample(one, cond, fg.REG(fg.CFG(2.0)), levels=levels, seeds=range(3))
    torch.testing.assert_close(sampler(cond, range(3)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [dit, unet])
def test_only_the_positive_rows_keep_a_graph_and_parameters_get_no_gradient(make):
    net = make().requires_grad_(True)
    model, batch, seen = model_of(net), 3, []
    sampler = fg.Sampler(model, fg.REG(fg.CFG(3.0) + fg.PAG(1.0)), steps=2)
    parameters = {p.data_ptr() for p in net.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in parameters and tensor.ndim > 1:
            seen.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sampler(torch.arange(batch), range(batch))
    assert seen
    # of a head or a group there may be more than one row a sample, but never those of three
    rows = {shape[0] for shape in seen}
    assert 3 * batch not in rows, sorted(map(tuple, seen))
    assert all(p.grad is None for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_reg_off_is_off():
    model, cond = model_of(dit()), torch.arange(3)
    off = fg.Sampler(model, fg.REG(fg.CFG(1.0)), steps=STEPS)
    without = fg.Sampler(model, steps=STEPS)
    assert not any(pattern.graph for pattern in off.plan.patterns)
    assert torch.equal(off(cond, range(3)), without(cond, range(3)))
    inside = fg.REG(fg.CFG(3.0, fg.interval(0.3, 2.9)), within=fg.interval(9.0, 10.0))
    plain = fg.CFG(3.0, fg.interval(0.3, 2.9))
    same = [fg.sample(model, cond, g, steps=8, seeds=range(3)) for g in (inside, plain)]
    assert torch.equal(*same)


def test_samples_keep_their_own_factor():
    model, cond = model_of(dit()), torch.tensor([1, 4, 2])
    guidance = fg.REG(fg.CFG(torch.tensor([1.0, 3.0, 2.0])))
    batch = fg.sample(model, cond, guidance, steps=STEPS, seeds=[7, 8, 9])
    alone = fg.sample(model, cond[1:2], fg.REG(fg.CFG(3.0)), steps=STEPS, seeds=[8])
    torch.testing.assert_close(batch[1:2], alone, rtol=1e-4, atol=1e-4)
    plain = fg.sample(model, cond[:1], steps=STEPS, seeds=[7])
    torch.testing.assert_close(batch[:1], plain, rtol=1e-4, atol=1e-4)


def test_reg_and_nag_keep_one_graph():
    """NAG's positive rows meet the negative ones inside, so that both are differentiated."""
    model, cond = model_of(dit()), torch.arange(2)
    nag = fg.NAG(3.0, tau=1.5, alpha=0.5)
    both = fg.sample(model, cond, fg.REG(fg.PAG(1.0)) + nag, steps=STEPS, seeds=range(2))
    difference = fg.REG(fg.PAG(1.0), "difference") + nag
    near = fg.sample(model, cond, difference, steps=STEPS, seeds=range(2))
    plain = fg.sample(model, cond, fg.PAG(1.0) + nag, steps=STEPS, seeds=range(2))
    assert torch.isfinite(both).all()
    assert torch.isfinite(near).all()
    assert (both - plain).abs().max() > 1e-2 * plain.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_sixteen_bit_networks(dtype, mode):
    model, cond = model_of(dit()), torch.arange(2)
    want = fg.sample(model, cond, fg.REG(fg.CFG(2.0), mode), steps=STEPS, seeds=range(2))
    got = fg.sample(
        model, cond, fg.REG(fg.CFG(2.0), mode), steps=STEPS, seeds=range(2), dtype=dtype
    )
    assert (got - want).abs().mean() < 0.1 * want.abs().mean()


def test_inference_mode_around_a_run_changes_nothing():
    model, cond = model_of(dit()), torch.arange(2)
    want = fg.sample(model, cond, fg.REG(fg.CFG(2.0)), steps=STEPS, seeds=range(2))
    with torch.inference_mode():
        got = fg.sample(model, cond, fg.REG(fg.CFG(2.0)), steps=STEPS, seeds=range(2))
    assert torch.equal(got, want)


def test_networks_without_gradients():
    cond = torch.arange(2)
    with torch.inference_mode():
        made = model_of(dit())
    with pytest.raises(ValueError, match="parameters are inference tensors"):
        fg.Sampler(made, fg.REG(fg.CFG(2.0)))
    detached = model_of(lambda x, t, c: torch.zeros_like(x.detach()))
    with pytest.raises(ValueError, match="its output has no gradient"):
        fg.sample(detached, cond, fg.REG(fg.CFG(2.0)), steps=2, seeds=range(2))
    quantised = torch.ao.quantization.quantize_dynamic(dit(), {torch.nn.Linear})
    with pytest.raises(ValueError, match="is a quantised Linear"):
        fg.Sampler(model_of(quantised), fg.REG(fg.CFG(2.0)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fg.REG(fg.CFG(2.0), mode="jvp"), ValueError, "mode is 'jvp'"),
        (lambda: fg.REG(fg.CFG(2.0), every=0), ValueError, "every is 0"),
        (lambda: fg.REG(fg.CFG(2.0), "chain", every=2), ValueError, "every is 2 with mode 'chain'"),
        (lambda: fg.REG(fg.CFG(2.0), step=0.1), ValueError, "step is 0.1 with mode 'vjp'"),
        (lambda: fg.REG(fg.CFG(2.0), "difference", step=0.0), ValueError, "step is 0.0"),
        (lambda: fg.REG(2.0), TypeError, "guidance of REG is 2.0"),
        (lambda: fg.REG(fg.NAG(5.0)), TypeError, "guidance of REG is NAG"),
        (lambda: fg.REG(fg.REG(fg.CFG(2.0))), ValueError, "REG has REG within"),
        (
            lambda: fg.Sampler(model_of(dit()), fg.REG(fg.CFG(2.0)) + fg.REG(fg.PAG(1.0), "chain")),
            ValueError,
            "REG with 2 different settings",
        ),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_columns_of_the_table_are_neighbours():
    """`ops.gram` is given both as one view."""
    assert Column.OF_PREDICTION == Column.OF_X + 1
