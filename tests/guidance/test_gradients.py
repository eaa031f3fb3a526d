"""Guidance by gradients, against exact classifiers of mixtures and plain formulas."""

import math
from functools import partial

import exact
import pytest
import torch
from recorder import captured

import fastguide as fg
from fastguide.nets.diffuse import alpha_sigma, from_ratio, net_input

LABELS = torch.tensor([0, 1, 1])


class Posterior:
    """log p(class | x) of a mixture at the level that the network is told."""

    def __init__(self, model):
        self.net, self.prediction = model.net, model.prediction
        self.process, self.classes = model.process, model.null

    def __call__(self, x, t):
        t = t.double().view(-1, 1)
        if self.prediction.log_time is not None:
            alpha, sigma = from_ratio(self.process, (t / self.prediction.log_time).exp())
        else:
            alpha, sigma = alpha_sigma(self.process, t)
        scale = net_input(self.prediction, torch.ones_like(alpha), t, alpha, sigma)[0]
        flat = x.double().flatten(1) / scale
        net = self.net
        total = alpha.square() * net.variances + sigma.square()
        offset = flat.unsqueeze(1) - alpha.unsqueeze(2) * net.means
        logits = net.log_weights - 0.5 * (
            flat.shape[1] * total.log() + offset.square().sum(2) / total
        )
        parts = [logits[:, net.labels == c].logsumexp(1) for c in range(self.classes)]
        return torch.stack(parts, 1)


def unconditional(model):
    return fg.Model(
        lambda x, t, c: model.net(x, t, None), model.process, model.prediction, model.shape
    )


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_an_exact_classifier_is_cfg(process, weight):
    """grad log p(y | x) = grad log p(x | y) - grad log p(x): weight w is CFG of scale w."""
    model = exact.two_classes(process)
    levels = fg.karras(sigma_max=10.0).run(process, 8)
    want = fg.sample(model, LABELS, fg.CFG(weight), levels=levels, seeds=range(3))
    guidance = fg.ClassifierGuidance(Posterior(model), weight)
    got = fg.sample(unconditional(model), LABELS, guidance, levels=levels, seeds=range(3))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-4)
    named = fg.ClassifierGuidance(Posterior(model), weight, labels=LABELS)
    same = fg.sample(unconditional(model), None, named, levels=levels, seeds=range(3))
    assert torch.equal(same, got)


def test_reg_of_a_classifier_is_reg_of_cfg(process):
    """Of the unconditional network: the factor is that of the rows that are guided."""
    model = exact.two_classes(process)
    levels = fg.karras(sigma_max=10.0).run(process, 6)
    free = unconditional(model)
    classified = fg.REG(fg.ClassifierGuidance(Posterior(model), 1.5))
    got = fg.sample(free, LABELS, classified, levels=levels, seeds=range(3))

    # the same delta from two networks: the positive is the unconditional one
    def swapped(x, t, cond):
        inner = torch.where(cond == model.null, LABELS, torch.full_like(cond, model.null))
        return model.net(x, t, inner)

    other = fg.Model(swapped, process, model.prediction, model.shape, null=model.null)
    want = fg.sample(other, LABELS, fg.REG(fg.CFG(-0.5)), levels=levels, seeds=range(3))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=5e-4)
    plain = fg.sample(
        free, LABELS, fg.ClassifierGuidance(Posterior(model), 1.5), levels=levels, seeds=range(3)
    )
    assert (got - plain).abs().max() > 1e-2


def test_energies_and_encoders_are_classifiers_by_another_name(process):
    model = exact.two_classes(process)
    free, posterior = unconditional(model), Posterior(model)
    levels = fg.karras(sigma_max=10.0).run(process, 6)

    def energy(x, t):
        return -torch.log_softmax(posterior(x, t), 1).gather(1, LABELS[:, None]).squeeze(1)

    run = {"levels": levels, "seeds": range(3)}
    want = fg.sample(free, LABELS, fg.ClassifierGuidance(posterior, 1.5), **run)
    got = fg.sample(free, None, fg.EnergyGuidance(energy, 1.5), **run)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    torch.manual_seed(0)
    to_embedding, text = torch.randn(32, 6), torch.randn(3, 6)

    def encoder(x, t):
        return x.float().flatten(1) @ to_embedding

    def similarity(x, t):
        z = encoder(x, t)
        return -7.0 * (z * text).sum(1) / (z.norm(dim=1) * text.norm(dim=1))

    clip = fg.CLIPGuidance(encoder, text, 0.5, logit_scale=7.0)
    got = fg.sample(free, None, clip, **run)
    want = fg.sample(free, None, fg.EnergyGuidance(similarity, 0.5), **run)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (got - fg.sample(free, None, **run)).abs().max() > 1e-2


def test_an_energy_of_the_denoised_image(process):
    """x_0 moves by -sigma^2 / alpha grad_x E(x_0(x)), through the network."""
    model = exact.two_classes(process)
    levels = fg.karras(sigma_max=10.0).run(process, 5)
    wanted = torch.linspace(-1, 1, 32).view(2, 4, 4)

    def energy(x, t):
        assert (t == 0).all()
        return (x - wanted).square().sum((1, 2, 3))

    prediction = model.prediction
    start = 1.0 if isinstance(process, fg.VP) else levels.points[0].sigma
    x = start * fg.noise(range(3), model.shape).double()
    for now, to in levels.steps():
        a, b = prediction.denoised(now)
        t = torch.full((3,), prediction.net_time(now), dtype=torch.float64)
        leaf = x.detach().requires_grad_()
        clean = a * leaf + b * model.net(prediction.input_scale(now) * leaf, t, LABELS)
        gradient = torch.autograd.grad(energy(clean, 0 * t).sum(), leaf)[0]
        moved = clean.detach() - 0.3 * now.sigma**2 / now.alpha * gradient
        keep = to.sigma / now.sigma
        x = keep * x + (to.alpha - now.alpha * keep) * moved
    guidance = fg.EnergyGuidance(energy, 0.3, of="denoised")
    got = fg.sample(model, LABELS, guidance, levels=levels, seeds=range(3))
    torch.testing.assert_close(got.double(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_the_mean_form_moves_the_mean_by_the_variance(variance):
    """Algorithm 1 of its paper: x' = mean + w S grad + S^1/2 n, S per element where learned."""
    base = exact.two_classes(exact.PROCESSES["vp"])
    posterior, process = Posterior(base), base.process

    def two_parts(x, t, cond):
        return torch.cat([base.net(x, t, cond), torch.tanh(x)], 1)

    learned = variance == "learned"
    model = fg.Model(
        two_parts if learned else base.net,
        process,
        base.prediction,
        base.shape,
        null=2,
        variance=learned,
    )
    levels = fg.linspace.run(process, 6)
    solver, w = fg.ddpm(variance=variance), 1.7
    noises = [torch.randn(3, *base.shape) for _ in range(5)]
    x = fg.noise(range(3), base.shape).double()
    updates = list(solver.run(levels))
    for update, noise in zip(updates, [*noises, None], strict=True):
        a, b = base.prediction.denoised(update.at)
        t = torch.full((3,), base.prediction.net_time(update.at), dtype=torch.float64)
        clean = a * x + b * base.net(x, t, LABELS)
        new = update.x["x"] * x + update.x["denoised"] * clean
        if "noise" in update.x:
            std = update.x["noise"] * torch.exp(update.spread * torch.tanh(x))
            leaf = x.detach().requires_grad_()
            value = torch.log_softmax(posterior(leaf, t), 1).gather(1, LABELS[:, None])
            gradient = torch.autograd.grad(value.sum(), leaf)[0]
            new = new + std.square() * w * gradient + std * noise
        x = new
    guidance = fg.ClassifierGuidance(posterior, w, form="mean")
    sampler = fg.Sampler(model, guidance, solver, levels=levels)
    got = sampler(LABELS, range(3), step_noise=noises)
    torch.testing.assert_close(got.double(), x, rtol=1e-3, atol=1e-3)
    drawn = sampler(LABELS, range(3))
    given = [fg.noise(range(3), base.shape, e) for e in range(1, 6)]
    torch.testing.assert_close(drawn, sampler(LABELS, range(3), step_noise=given))
    plain = fg.Sampler(model, None, solver, levels=levels)(LABELS, range(3))
    assert (drawn - plain).abs().max() > 1e-2


def square(x, t):
    return 0.5 * x.flatten(1).square().sum(1)


@pytest.mark.parametrize("of", ["x", "denoised"])
@pytest.mark.parametrize("kind", ["energy", "clip"])
def test_the_mean_form_of_energies_and_clip(kind, of):
    """GLIDE's: x' = mean + w s^2 grad + s n, one step at a time; s is the solver's own."""
    model = exact.two_classes(exact.PROCESSES["vp"])
    text, w = torch.randn(32), 0.8

    def similarity(x):
        return 5.0 * torch.cosine_similarity(x.flatten(1), text.to(x.dtype)[None])

    if kind == "energy":
        guidance = fg.EnergyGuidance(square, w, of=of, form="mean")
    else:
        encoder = (lambda x, t: x.flatten(1),)[0]
        guidance = fg.CLIPGuidance(encoder, text, w, 5.0, of=of, form="mean")
    levels = fg.linspace.run(model.process, 4)
    x = fg.noise(range(3), model.shape).double()
    for e, update in enumerate(fg.ddpm.run(levels), 1):
        a, b = model.prediction.denoised(update.at)
        t = torch.full((3,), model.prediction.net_time(update.at), dtype=torch.float64)
        leaf = x.detach().requires_grad_()
        clean = a * leaf + b * model.net(leaf, t, LABELS)
        seen = leaf if of == "x" else clean
        value = -square(seen, t) if kind == "energy" else similarity(seen)
        gradient = torch.autograd.grad(value.sum(), leaf)[0]
        std = update.x.get("noise", 0.0)
        x = update.x["x"] * x + update.x["denoised"] * clean.detach() + std**2 * w * gradient
        x = x + std * fg.noise(range(3), model.shape, e) if std else x
    got = fg.sample(model, LABELS, guidance, "ddpm", levels=levels, seeds=range(3))
    torch.testing.assert_close(got.double(), x, rtol=1e-3, atol=1e-3)


def test_posterior_sampling_by_a_measurement():
    """As docs/images.md writes it: x0 + w sigma^2 / alpha d(-|A x0(x) - y|) / dx, at one level; and
    a whole run ends nearer to what was measured.
    """
    model = exact.two_classes(exact.PROCESSES["edm"])
    measured = fg.pooled(2)(torch.randn(3, *model.shape))

    def energy(x0, t):
        return (fg.pooled(2)(x0) - measured.to(x0.dtype)).flatten(1).norm(dim=1)

    at = model.process.at_ratio(0.7)
    levels = fg.Levels.from_sigmas(model.process, [0.7])
    guidance = fg.EnergyGuidance(energy, 1.5, of="denoised")
    got = fg.sample(model, LABELS, guidance, levels=levels, seeds=range(3))
    x = (at.sigma * fg.noise(range(3), model.shape).double()).requires_grad_()
    a, b = model.prediction.denoised(at)
    t = torch.full((3,), model.prediction.net_time(at), dtype=torch.float64)
    clean = a * x + b * model.net(model.prediction.input_scale(at) * x, t, LABELS)
    gradient = torch.autograd.grad(-energy(clean, t).sum(), x)[0]
    want = clean + 1.5 * at.sigma**2 / at.alpha * gradient
    torch.testing.assert_close(got.double(), want.detach(), rtol=1e-4, atol=1e-4)
    run = {"steps": 12, "seeds": range(3)}
    ends = [fg.sample(model, LABELS, one, "heun", **run) for one in (guidance, None)]
    led, plain = (energy(images, None) for images in ends)
    assert (led < plain - 0.1).all()


def test_the_mean_form_beside_a_delta_that_adaptive_guidance_drops():
    """Once a branch is gone, the gradient keeps its own weight."""
    model = exact.two_classes(exact.PROCESSES["flow"])
    run = {"steps": 8, "seeds": range(3), "solver": fg.ddpm}
    ends = fg.Adaptive(fg.CFG(3.0), -1.0)
    led = fg.ClassifierGuidance(Posterior(model), 0.7, form="mean")
    dropped = fg.sample(model, LABELS, ends + led, **run)
    stays = fg.CFG(1.0 + 1e-9)  # so that the pattern is never left with one branch fewer
    kept = fg.sample(model, LABELS, ends + stays + led, **run)
    torch.testing.assert_close(dropped, kept, rtol=1e-4, atol=1e-4)


def test_weight_zero_is_off_and_asks_the_classifier_nothing():
    model = exact.two_classes(exact.PROCESSES["flow"])

    def never(x, t):
        raise AssertionError("asked")

    off = fg.sample(model, LABELS, fg.ClassifierGuidance(never, 0.0), steps=4, seeds=range(3))
    assert torch.equal(off, fg.sample(model, LABELS, steps=4, seeds=range(3)))


def test_a_held_gradient():
    model, asked = exact.two_classes(exact.PROCESSES["edm"]), []
    posterior = Posterior(model)

    def counted(x, t):
        asked.append(1)
        return posterior(x, t)

    guidance = fg.ClassifierGuidance(counted, 1.0, every=3)
    fg.sample(model, LABELS, guidance, steps=7, seeds=range(3))
    assert len(asked) == 3


def test_a_gradient_that_is_not_finite_is_named():
    model = exact.two_classes(exact.PROCESSES["edm"])
    posterior = Posterior(model)

    def broken(x, t):
        return posterior(x, t) * torch.where(t < 0.1, torch.nan, 1.0).view(-1, 1)

    with pytest.raises(fg.NonFiniteError, match="the gradient of the classifier is not"):
        fg.sample(model, LABELS, fg.ClassifierGuidance(broken, 1.0), steps=6, seeds=range(3))

    def bad_net(x, t, cond):
        return model.net(x, t, cond) * math.nan

    bad = fg.Model(bad_net, model.process, model.prediction, model.shape, null=2)
    with pytest.raises(fg.NonFiniteError, match=r"from evaluation 1 of") as error:
        fg.sample(bad, LABELS, fg.CFG(2.0), steps=3, seeds=range(3))
    assert "gradient" not in str(error.value)


MODEL = exact.two_classes(exact.PROCESSES["flow"])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fg.EnergyGuidance(lambda x, t: x.sum(), 1.0), ValueError, r"energy returned \(\)"),
        (lambda: fg.EnergyGuidance(lambda x, t: x, 1.0), ValueError, r"energy returned \(3, 2, 4"),
        (
            lambda: fg.EnergyGuidance(lambda x, t: x.detach().sum((1, 2, 3)), 1.0),
            ValueError,
            "energy returned values without a gradient",
        ),
        (
            lambda: fg.ClassifierGuidance(lambda x, t: x.sum((1, 2, 3)), 1.0),
            ValueError,
            r"classifier returned \(3,\)",
        ),
        (
            lambda: fg.ClassifierGuidance(Posterior(MODEL), 1.0, labels=torch.tensor([1])),
            ValueError,
            r"labels is \(1,\), but there are 3 samples",
        ),
        (
            lambda: fg.ClassifierGuidance(Posterior(MODEL), 1.0, form="mean"),
            ValueError,
            "form is 'mean'.*draws none",
        ),
        (lambda: fg.ClassifierGuidance(3, 1.0), TypeError, "classifier is 3"),
        (lambda: fg.ClassifierGuidance(Posterior(MODEL), 1.0, form="x"), ValueError, "form is 'x'"),
        (
            lambda: fg.ClassifierGuidance(Posterior(MODEL), 1.0, labels=torch.rand(3)),
            ValueError,
            "labels is tensor",
        ),
        (
            lambda: fg.CLIPGuidance(lambda x, t: x.flatten(1), torch.randn(5), 1.0),
            ValueError,
            r"image_encoder returned \(3, 32\), but it should return \(3, 5\)",
        ),
        (
            lambda: fg.CLIPGuidance(lambda x, t: x.flatten(1), torch.arange(5), 1.0),
            ValueError,
            "text_embedding is torch.int64",
        ),
        (lambda: fg.EnergyGuidance(Posterior(MODEL), 1.0, of="y"), ValueError, "of is 'y'"),
        (lambda: fg.EnergyGuidance(square, 1.0, form="y"), ValueError, "form is 'y'"),
        (lambda: fg.EnergyGuidance(square, 1.0, form="mean"), ValueError, "draws none"),
    ],
)
def test_errors_name_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        fg.sample(MODEL, LABELS, make(), steps=3, seeds=range(3))


def test_a_classifier_needs_labels():
    free = unconditional(MODEL)
    for cond in (None, torch.rand(3, 2)):
        with pytest.raises(ValueError, match="needs integer labels"):
            fg.sample(free, cond, fg.ClassifierGuidance(Posterior(MODEL), 1.0), seeds=range(3))
    with pytest.raises(ValueError, match=r"cond.shape is \(2,\), but there are 3 seeds"):
        fg.sample(free, [0, 1], fg.ClassifierGuidance(Posterior(MODEL), 1.0), seeds=range(3))


def _net(x, t, c):
    return 0.7 * x + 0.1 * torch.sin(3 * x)


def _classifier(x, t):
    total = 0.2 * x.flatten(1).sum(1)
    return torch.stack([total, -total], 1)


def _led(levels, start, clamp, rederive=True, bound=None):
    """DDIM, the image clamped first and led then."""
    x = start.double()
    for now, to in levels.steps():
        leaf = x.clone().requires_grad_()
        logs = torch.log_softmax(_classifier(leaf, None), 1)[:, 0].sum()
        lead = now.sigma**2 / now.alpha * torch.autograd.grad(logs, leaf)[0]
        free = (x - now.sigma * _net(x, 0, 0)) / now.alpha
        image = (free.clamp(-clamp, clamp) if bound is None else bound(free)) + lead
        kept = image if rederive else free + lead
        x = to.alpha * image + to.sigma * (x - now.alpha * kept) / now.sigma
    return x.float()


@pytest.mark.parametrize("rederive", [True, False])
@pytest.mark.parametrize("graph", [False, "whole", "steps"])
def test_a_clamp_comes_before_the_classifier_as_in_adm(graph, rederive):
    process = fg.VP("linear")
    model = fg.Model(_net, process, fg.Prediction("eps"), (1, 4, 4))
    levels = fg.Levels.from_times(process, [900.0, 700.0, 500.0, 300.0])
    start = torch.randn(2, 1, 4, 4)
    guidance = fg.ClassifierGuidance(_classifier, 1.0)
    options = {"levels": levels, "clamp": 1.0, "solver": fg.ddim(rederive=rederive)}
    labels = torch.zeros(2, dtype=torch.long)
    make = fg.Sampler if not graph else partial(captured, graph=graph)
    got = make(model, guidance, **options)(labels, range(2), noise=start)
    want = _led(levels, start, 1.0, rederive)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(got, got.clamp(-1, 1))  # it is not clamped again


def test_a_dynamic_threshold_comes_before_the_classifier_too():
    process = fg.VP("linear")
    model = fg.Model(_net, process, fg.Prediction("eps"), (1, 4, 4))
    levels = fg.Levels.from_times(process, [900.0, 700.0, 500.0, 300.0])
    start = torch.randn(2, 1, 4, 4)

    def bound(free):
        s = free.abs().flatten(1).quantile(0.9, 1).clamp(min=1.0).view(-1, 1, 1, 1)
        return free.clamp(-s, s) / s

    guidance = fg.ClassifierGuidance(_classifier, 1.0)
    options = {"levels": levels, "clamp": fg.DynamicThreshold(0.9)}
    labels = torch.zeros(2, dtype=torch.long)
    got = fg.Sampler(model, guidance, **options)(labels, range(2), noise=start)
    want = _led(levels, start, 1.0, bound=bound)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_clamped_lead_beside_cfg_and_in_reg_moves_the_clamped_image(process):
    model = exact.two_classes(process)
    levels = fg.karras(sigma_max=10.0).run(process, 5)
    options = {"levels": levels, "seeds": range(3)}
    posterior = fg.ClassifierGuidance(Posterior(model), 1.5)
    for guidance in (posterior + fg.CFG(2.0), fg.CFG(2.0) + posterior, fg.REG(posterior)):
        free = fg.sample(model, LABELS, guidance, **options)
        same = fg.sample(model, LABELS, guidance, clamp=1e6, **options)  # a clamp of nothing
        torch.testing.assert_close(same, free, rtol=1e-4, atol=1e-4)
        tight = fg.sample(model, LABELS, guidance, clamp=0.3, **options)
        assert not torch.allclose(tight, free, atol=1e-2)


def test_a_gradient_that_spoils_the_last_image_is_found_though_it_was_clamped():
    def energy(x, t):
        return x.flatten(1).sum(1) * torch.where(t < 300, torch.nan, 1.0)

    process = fg.VP("linear")
    model = fg.Model(_net, process, fg.Prediction("eps"), (1, 4, 4))
    guidance = fg.EnergyGuidance(energy, 1.0)
    levels = fg.Levels.from_times(process, [900.0, 100.0])
    with pytest.raises(fg.NonFiniteError, match="from evaluation 2 of 2"):
        fg.sample(model, None, guidance, levels=levels, clamp=1.0)
