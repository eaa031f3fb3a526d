"""The loss of a learned variance, against the divergence computed directly, and what it learns."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

import fastguide as fg
from fastguide.nets import UNet
from fastguide.training import Images, Recipe, TrainConfig, train
from fastguide.training.objective import noised
from fastguide.training.variance import bound_loss

PROCESSES = {
    "linear": fg.VP(),
    "cosine": fg.VP("cosine", timesteps=50),
    "zero": fg.VP("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True),
}


def direct(process, prediction, clean, x, t, output, variance):
    """Row by row in fp64, from the betas: eq. 7 of DDPM for q, eq. 15 of Nichol and Dhariwal."""
    bits = []
    abars = torch.cumprod(1 - torch.tensor(process.beta_table, dtype=torch.float64), 0)
    for row in range(len(t)):
        step = int(t[row])
        beta, abar, before = process.beta_table[step], abars[step], abars[step - 1]
        tilde = beta * (1 - before) / (1 - abar)
        a, b = prediction.denoised(process.level(float(step)))

        def mean(image, noisy, before=before, beta=beta, abar=abar):
            gain = beta * before.sqrt() / (1 - abar)
            return gain * image + math.sqrt(1 - beta) * (1 - before) / (1 - abar) * noisy

        noisy, f = x[row].double(), (variance[row].double() + 1) / 2
        denoised = a * noisy + b * output[row].double()
        std = (0.5 * (f * math.log(beta) + (1 - f) * math.log(tilde))).exp()
        q = Normal(mean(clean[row].double(), noisy), tilde.sqrt())
        bits.append(kl_divergence(q, Normal(mean(denoised, noisy), std)).mean() / math.log(2))
    return torch.stack(bits) * process.timesteps / 1000


# at pure noise, where "zero" ends, eps does not determine the image
@pytest.mark.parametrize(
    ("name", "predicted"),
    [(n, p) for n in PROCESSES for p in ("eps", "x0", "v") if (n, p) != ("zero", "eps")],
)
def test_it_is_the_divergence_computed_directly(name, predicted):
    process, prediction = PROCESSES[name], fg.Prediction(predicted)
    clean = torch.randn(64, 2, 3, 5)
    x, t, target = noised(clean, process, prediction, torch.Generator().manual_seed(1))
    keep = t >= 1
    clean, x, t, target = clean[keep], x[keep], t[keep], target[keep]
    output = target + 0.1 * torch.randn_like(target)
    variance = 1.5 * torch.randn_like(target)
    expected = direct(process, prediction, clean, x, t, output, variance)
    loss = bound_loss(output, variance, target, t, process, prediction)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-4, atol=1e-6)


def test_it_moves_the_variance_alone_and_not_at_the_last_step():
    output, variance, target = torch.randn(3, 4, 1, 2, 2).unbind(0)
    output.requires_grad_(True)
    variance.requires_grad_(True)
    t = torch.tensor([0.0, 1.0, 500.0, 999.0])
    loss = bound_loss(output, variance, target, t, fg.VP(), fg.Prediction("eps"))
    assert loss[0] == 0.0
    loss.sum().backward()
    assert output.grad is None
    assert variance.grad[0].abs().max() == 0.0
    assert variance.grad[1:].abs().amin((1, 2, 3)).min() > 0.0


def test_an_exact_prediction_has_its_least_loss_at_the_posteriors_variance():
    target = torch.randn(1, 1, 8, 8)
    values = torch.linspace(-1.2, 1.0, 23)
    t = torch.tensor([3.0])
    losses = [
        float(bound_loss(target, torch.full_like(target, v), target, t, fg.VP(), PREDICTION))
        for v in values
    ]
    assert values[losses.index(min(losses))] == pytest.approx(-1.0)
    assert min(losses) == pytest.approx(0.0, abs=1e-6)


PREDICTION = fg.Prediction("eps")


def test_a_learned_variance_is_trained_and_sampled(tmp_path):
    """White noise as images: no prediction of it is sharp, so the best variance is beta's."""
    pixels = torch.randint(0, 256, (256, 1, 4, 4), dtype=torch.uint8)
    images = Images(pixels, torch.zeros(256, dtype=torch.int64), ("noise",))
    net = UNet(
        width=16,
        multipliers=(1, 2),
        res_blocks=1,
        attention=(),
        head_channels=16,
        groups=4,
        classes=1,
        variance=True,
        time_scale=20.0,
    )
    losses = []
    settings = {"rate": 3e-3, "warmup": 10, "ema": 0.9, "recipe": Recipe(), "autocast": False}
    config = TrainConfig(steps=200, batch=64, **settings)
    process = fg.VP("cosine", timesteps=50)
    model = train(
        net, images, process, PREDICTION, config, tmp_path, lambda _, loss: losses.append(loss)
    )
    assert model.variance
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    clean = torch.rand(64, 1, 4, 4) * 2 - 1
    x, t, target = noised(clean, process, PREDICTION, torch.Generator().manual_seed(2))
    output, variance = model.net(x, t, torch.zeros(64, dtype=torch.int64)).chunk(2, 1)
    learned = bound_loss(output, variance, target, t, process, PREDICTION).mean()
    for fixed in (-1.0, 1.0):
        other = bound_loss(output, torch.full_like(variance, fixed), target, t, process, PREDICTION)
        assert learned < other.mean()
    options = {"steps": 10, "seeds": range(8), "clamp": 1.0}
    runs = [
        fg.sample(model, [0] * 8, fg.CFG(1.5), fg.ddpm(variance=kind), **options)
        for kind in ("small", "learned", "large")
    ]
    for a, b in ((0, 1), (1, 2)):
        assert (runs[a] - runs[b]).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize(
    ("process", "prediction"), [(fg.Flow(), "flow"), (fg.EDM(), "edm"), (fg.VP(), "edm")]
)
def test_it_needs_timesteps(tmp_path, process, prediction):
    images = Images(
        torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64), ("a",)
    )
    net = UNet(
        width=8,
        multipliers=(1,),
        attention=(),
        head_channels=8,
        groups=4,
        classes=1,
        variance=True,
    )
    with pytest.raises(ValueError, match="which needs VP and eps, x0 or v, but process is"):
        train(
            net,
            images,
            process,
            fg.Prediction(prediction),
            TrainConfig(steps=1, batch=4),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()
