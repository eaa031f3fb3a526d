"""The whole loop on exact models: guidance, batches, seeds, dtypes, previews, errors."""

import threading

import exact
import pytest
import torch

import fastguide as fg
from fastguide.nets import DiT

LABELS = torch.arange(12) % 2


def tiny(heads=1, negative=False, seed=0):
    """A small random DiT whose output depends on everything."""
    torch.manual_seed(seed)
    net = DiT(2, 2, 32, 2, 4, classes=3, heads=heads, negative=negative).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.15)
    net.requires_grad_(False)
    return fg.Model(
        net, fg.Flow(), fg.Prediction("flow"), (2, 8, 8), null=3, heads=heads, negative=negative
    )


class Counting:
    """Counts the rows that the network is given, and remembers what it was given."""

    def __init__(self, model):
        self.net, self.rows, self.inputs = model.net, 0, []
        self.model = fg.Model(
            self,
            model.process,
            model.prediction,
            model.shape,
            model.null,
            model.heads,
            model.negative,
        )

    def __call__(self, x, t, cond):
        self.rows += x.shape[0]
        self.inputs.append((x.dtype, t.clone(), cond))
        return self.net(x, t, cond)


def plain_loop(model, labels, seeds, scale, steps, process):
    """Textbook two-pass CFG with DDIM in fp64, written out."""
    levels = fg.make_levels(process, steps)
    x = fg.noise(seeds, model.shape).double()
    x = x * (1.0 if isinstance(process, fg.VP) else levels.points[0].sigma)
    null = torch.full_like(labels, model.null)
    for now, to in levels.steps():
        time = torch.full((len(labels),), model.prediction.net_time(now), dtype=torch.float64)
        scaled = model.prediction.input_scale(now) * x
        cond, uncond = model.net(scaled, time, labels), model.net(scaled, time, null)
        a, b = model.prediction.denoised(now)
        denoised = a * x + b * (uncond + scale * (cond - uncond))
        eps = (x - now.alpha * denoised) / now.sigma
        x = to.alpha * denoised + to.sigma * eps
    return x


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm"])
def test_equals_a_plain_loop_for_every_process_and_prediction(process, name):
    if isinstance(
        process, fg.VP
    ):  # cosine ends at alpha 5e-5, where eps determines x_0 to no digit
        process = fg.VP("linear")
    if isinstance(process, fg.Flow) and name in ("eps", "edm"):
        levels = fg.karras.run(process, 9)  # these say nothing at alpha 0
    else:
        levels = None
    model = exact.two_classes(process, fg.Prediction(name))
    got = fg.sample(model, LABELS, fg.CFG(2.5), steps=9, seeds=range(12), levels=levels)
    if levels is None:
        want = plain_loop(model, LABELS, range(12), 2.5, 9, process)
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-4)
    else:
        flow = exact.two_classes(process, fg.Prediction("flow"))
        want = fg.sample(flow, LABELS, fg.CFG(2.5), seeds=range(12), levels=levels)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-3)


def test_single_pass_equals_two_pass_where_both_heads_are_exact(process):
    one, two = exact.two_classes(process, heads=2), exact.two_classes(process)
    counted = Counting(one)
    single = fg.sample(counted.model, LABELS, fg.Superconditioning(3.0), steps=8, seeds=range(12))
    double = fg.sample(two, LABELS, fg.CFG(3.0), steps=8, seeds=range(12))
    torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-5)
    assert counted.rows == 8 * 12


def test_negative_condition_in_one_pass_and_in_two():
    one = exact.two_classes(fg.Flow(), heads=2, negative=True)
    two = exact.two_classes(fg.Flow())
    other = 1 - LABELS
    single = fg.sample(one, LABELS, fg.Superconditioning(2.0), negative=other, seeds=range(12))
    double = fg.sample(two, LABELS, fg.CFG(2.0), negative=other, seeds=range(12))
    torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-5)
    without = fg.sample(two, LABELS, fg.CFG(2.0), seeds=range(12))
    assert (double - without).abs().max() > 0.1
    # the two-pass form of the two-condition network puts the negative one into a row of its own
    both = fg.sample(one, LABELS, fg.CFG(2.0), negative=other, seeds=range(12))
    torch.testing.assert_close(both, double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance", [fg.CFG, fg.Superconditioning])
def test_off_costs_nothing_and_on_changes_the_output(guidance):
    counted = Counting(tiny(heads=2))
    labels = torch.arange(6) % 3
    plain = fg.sample(counted.model, labels, steps=5, seeds=range(6))
    rows = counted.rows
    off = fg.sample(counted.model, labels, guidance(1.0), steps=5, seeds=range(6))
    assert torch.equal(off, plain)
    assert counted.rows == 2 * rows
    on = fg.sample(counted.model, labels, guidance(2.0), steps=5, seeds=range(6))
    assert (on - plain).abs().max() > 1e-3


def test_an_interval_runs_the_negative_rows_inside_it_only():
    counted = Counting(exact.two_classes(fg.EDM()))
    guidance = fg.CFG(3.0, fg.interval(0.3, 3.0))
    fg.sample(counted.model, LABELS, guidance, steps=18, seeds=range(12))
    inside = sum(0.3 <= p.sigma <= 3.0 for p in fg.make_levels(fg.EDM(), 18).points)
    assert counted.rows == 12 * (18 + inside)


@pytest.mark.parametrize("solver", [fg.ddim, fg.ddpm, fg.heun(churn=10.0)], ids=repr)
@pytest.mark.parametrize("guidance", [None, fg.CFG(2.0), fg.Superconditioning(2.0)])
def test_a_sample_is_the_same_alone_and_in_a_batch_of_64(solver, guidance):
    model = tiny(heads=2)
    labels = torch.arange(64) % 3
    sampler = fg.Sampler(model, guidance, solver, steps=6)
    batch = sampler(labels, range(64))
    for i in (0, 17, 63):
        alone = sampler(labels[i : i + 1], [i])
        torch.testing.assert_close(alone[0], batch[i], rtol=2e-5, atol=2e-5)


def test_a_scale_per_sample_equals_each_scale_alone():
    model = exact.two_classes(fg.Flow())
    scales = torch.tensor([1.0, 2.0, 5.0, 0.0])
    together = fg.sample(model, LABELS[:4], fg.CFG(scales), seeds=range(4))
    for i, scale in enumerate(scales.tolist()):
        alone = fg.sample(model, LABELS[i : i + 1], fg.CFG(scale), seeds=[i])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-6, atol=1e-6)


def test_solvers_reach_the_exact_marginal_through_the_whole_engine():
    model = exact.two_classes(fg.EDM())
    count = 4000
    labels = torch.zeros(count, dtype=torch.int64)
    x = fg.sample(model, labels, solver=fg.heun, steps=18, seeds=range(count)).double().flatten(1)
    net = model.net
    weights = net.log_weights[:2].exp() / net.log_weights[:2].exp().sum()
    mean = (weights[:, None] * net.means[:2]).sum(0)
    spread = (weights[:, None] * (net.variances[:2, None] + net.means[:2].square())).sum(0)
    std = (spread - mean.square()).sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * std / count**0.5 + 0.01).all()
    assert ((x.std(0) - std).abs() < 5 * std / (2 * count) ** 0.5 + 0.01).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_network_keeps_an_fp32_state(dtype):
    model = tiny(heads=2)
    counted = Counting(model)
    sampler = fg.Sampler(model, fg.CFG(2.0), steps=6, dtype=dtype)
    labels = torch.arange(4) % 3
    x = sampler(labels, range(4))
    full = fg.sample(model, labels, fg.CFG(2.0), steps=6, seeds=range(4))
    assert x.dtype == torch.float32
    assert next(model.net.parameters()).dtype == torch.float32  # the caller's network is untouched
    assert 0 < (x - full).abs().max() < 0.1
    callable_sampler = fg.Sampler(counted.model, fg.CFG(2.0), steps=1, dtype=torch.float32)
    callable_sampler(labels, range(4))
    assert counted.inputs[0][0] == torch.float32


def test_given_noise_replaces_the_seeds(process):
    model = exact.two_classes(process)
    sampler = fg.Sampler(model, fg.CFG(2.0), fg.ddpm, steps=5)
    drawn = sampler(LABELS, range(12))
    start = fg.noise(range(12), model.shape)
    steps = [fg.noise(range(12), model.shape, evaluation=e) for e in (1, 2, 3, 4)]
    given = sampler(LABELS, [99] * 12, noise=start, step_noise=steps)
    torch.testing.assert_close(given, drawn, rtol=1e-6, atol=1e-6)


def test_clamp_bounds_the_denoised_image():
    model = exact.two_classes(fg.EDM())
    seen = []
    fg.sample(
        model, LABELS, fg.CFG(9.0), seeds=range(12), clamp=0.5, callback=lambda p: seen.append(p)
    )
    assert seen[-1].denoised.abs().max() <= 0.5
    free = fg.sample(model, LABELS, fg.CFG(9.0), seeds=range(12))
    assert free.abs().max() > 0.5


def test_callback_sees_every_evaluation_and_changes_nothing():
    model = exact.two_classes(fg.Flow())
    sampler = fg.Sampler(model, fg.CFG(2.0), fg.heun, steps=4)
    seen = []
    with_callback = sampler(
        LABELS, range(12), callback=lambda p: seen.append((p.evaluation, p.at, p.denoised.clone()))
    )
    assert torch.equal(with_callback, sampler(LABELS, range(12)))
    assert [s[0] for s in seen] == list(range(1, 8))
    assert [s[1] for s in seen] == [r.at for r in sampler.plan.rows[1:]]
    torch.testing.assert_close(seen[-1][2], with_callback, rtol=1e-6, atol=1e-6)


def test_concurrent_calls_do_not_disturb_each_other():
    model = tiny(heads=2)
    sampler = fg.Sampler(model, fg.CFG(2.0), fg.ddpm, steps=8)
    labels = torch.arange(5) % 3
    alone = {s: sampler(labels, range(s, s + 5)) for s in (0, 100, 200, 300)}
    out = {}

    def call(first):
        out[first] = sampler(labels, range(first, first + 5))

    threads = [threading.Thread(target=call, args=(s,)) for s in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, want in alone.items():
        torch.testing.assert_close(out[first], want, rtol=1e-6, atol=1e-6)


def test_sampling_leaves_torchs_random_state_alone():
    before = torch.get_rng_state()
    fg.sample(exact.two_classes(fg.Flow()), LABELS, solver=fg.ddpm, seeds=range(12))
    assert torch.equal(before, torch.get_rng_state())


def test_other_image_sizes():
    model = tiny()
    x = fg.sample(model, [0, 1], fg.CFG(2.0), steps=3, seeds=range(2), shape=(2, 12, 6))
    assert x.shape == (2, 2, 12, 6)
    with pytest.raises(ValueError, match=r"shape is \(2, 9, 8\).*multiples of the patch size 2"):
        fg.sample(model, [0], steps=3, shape=(2, 9, 8))


def test_a_condition_may_be_any_pytree():
    def net(x, t, cond):
        scale = cond["pooled"].mean(1).view(-1, 1, 1, 1) + cond["text"].mean((1, 2)).view(
            -1, 1, 1, 1
        )
        return x * scale

    null = {"text": torch.zeros(3, 5), "pooled": torch.zeros(2)}
    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 2, 2), null=null)
    cond = {"text": torch.randn(4, 3, 5), "pooled": torch.randn(4, 2)}
    x = fg.sample(model, cond, fg.CFG(2.0), steps=3, seeds=range(4))
    null_rows = fg.sample(model, None, steps=3, seeds=range(4))
    assert (x - null_rows).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"cond is .*should have the structure"):
        fg.sample(model, {"text": cond["text"]}, steps=3, seeds=range(4))
    with pytest.raises(
        ValueError, match=r"cond\[0\] is \(4, 3, 5\), but it should be a tensor \[3"
    ):
        fg.sample(model, cond, steps=3, seeds=range(3))
    with pytest.raises(ValueError, match=r"cond\[0\].shape is \(4, 4, 5\), but the null"):
        fg.sample(model, {**cond, "text": torch.zeros(4, 4, 5)}, steps=3, seeds=range(4))


def test_non_finite_values_are_reported_with_their_evaluation():
    model = exact.two_classes(fg.Flow())
    calls = []

    def breaking(x, t, cond):
        calls.append(1)
        out = model.net(x, t, cond)
        if len(calls) == 3:
            out[1, 0, 0, 0] = torch.nan
        return out

    broken = fg.Model(breaking, model.process, model.prediction, model.shape, model.null)
    with pytest.raises(
        fg.NonFiniteError, match=r"sample 1 \(seed 41\), from evaluation 3 of 6"
    ) as e:
        fg.sample(broken, [0, 1, 0], steps=6, seeds=[40, 41, 42])
    assert e.value.evaluations == [None, 3, None]
    assert e.value.samples[0].isfinite().all()
    assert len(calls) == 6  # looked up once, at the end
    calls.clear()
    fg.sample(broken, [0, 1, 0], steps=6, seeds=[40, 41, 42], check=False)


ERRORS = [
    (
        lambda m: fg.sample(m, [0, 1], seeds=[1]),
        ValueError,
        r"cond.shape is \(2,\), but there are 1",
    ),
    (
        lambda m: fg.sample(m, [5]),
        ValueError,
        r"cond has 5, but a class should lie in \[0, 1\]: a, b",
    ),
    (lambda m: fg.sample(m, [-1]), ValueError, "cond has -1"),
    (lambda m: fg.sample(m, [0.5]), ValueError, "cond is torch.float32"),
    (lambda m: fg.sample(m, [0], steps=0), ValueError, "steps is 0"),
    (lambda m: fg.sample(m, [0], solver="dimm"), ValueError, "solver is 'dimm'"),
    (lambda m: fg.sample(m, [0], solver=len), TypeError, "solver is"),
    (lambda m: fg.sample(m, [0], spacing="trailing"), ValueError, "spacing is 'trailing'"),
    (lambda m: fg.sample(m, [0], guidance=3.0), TypeError, "guidance is 3.0"),
    (lambda m: fg.sample(m.net, [0]), TypeError, "model is a GaussianMixture"),
    (lambda m: fg.sample(m, [0], negative=[1]), ValueError, "negative is given"),
    (
        lambda m: fg.sample(m, [0], fg.Superconditioning(2.0)),
        ValueError,
        "needs a network with 2 heads, but model.heads is 1",
    ),
    (
        lambda m: fg.sample(m, [0], fg.CFG(torch.ones(3))),
        ValueError,
        "values for 3 samples, but there are 1 seeds",
    ),
    (lambda m: fg.sample(m, [0], dtype=torch.float64), ValueError, "dtype is torch.float64"),
    (lambda m: fg.sample(m, [0], clamp=-1.0), ValueError, "clamp is -1.0"),
    (lambda m: fg.sample(m, [0], clamp=(1.0, 1.0)), ValueError, "clamp is"),
    (lambda m: fg.sample(m, [0], shape=(3, 4, 4)), ValueError, r"shape is \(3, 4, 4\)"),
    (lambda m: fg.sample(m, [0], noise=torch.zeros(1, 2, 4, 5)), ValueError, "noise is"),
    (
        lambda m: fg.sample(m, [0], step_noise=[torch.zeros(1)]),
        ValueError,
        "step_noise has 1 tensors",
    ),
    (lambda m: fg.sample(m, [0], seeds=[-3]), ValueError, "seeds has -3"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_come_before_any_work(call, error, message):
    counted = Counting(exact.two_classes(fg.Flow()))
    model = fg.Model(
        counted,
        fg.Flow(),
        fg.Prediction("flow"),
        (2, 4, 4),
        null=2,
        class_names=("a", "b"),
    )
    if "model is a" in message:
        model = exact.two_classes(fg.Flow())
    with pytest.raises(error, match=message):
        call(model)
    assert counted.rows == 0


def test_a_network_of_the_wrong_shape_is_named():
    model = fg.Model(lambda x, t, c: x[:, :1], fg.Flow(), fg.Prediction("flow"), (2, 4, 4))
    with pytest.raises(
        ValueError, match=r"net returned \(1, 1, 4, 4\).*should return a tensor \(1, 2"
    ):
        fg.sample(model)
    with pytest.raises(ValueError, match=r"model\.null is None"):
        fg.sample(model, guidance=fg.CFG(2.0))


def test_learned_variance_needs_a_network_that_predicts_one():
    model = exact.two_classes(exact.PROCESSES["vp"])
    with pytest.raises(ValueError, match=r"solver is ddpm\(variance='learned'\)"):
        fg.Sampler(model, solver=fg.ddpm(variance="learned"))
    with pytest.raises(ValueError, match="variance is True with heads 2"):
        fg.Model(model.net, model.process, model.prediction, model.shape, heads=2, variance=True)
