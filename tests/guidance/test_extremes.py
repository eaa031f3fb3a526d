"""Divisions by norms, deviations and inner products, where these are zero, equal, tiny or huge: no
NaN, no blow-up, and the limit where there is one.
"""

import itertools

import pytest
import torch

import fastguide as fg
from fastguide import ops, reference
from fastguide.engine.pattern import Pattern
from fastguide.engine.project import Products, projected_weights
from fastguide.guidance.base import POSITIVE

SCALE = 4.0
MAKES = {
    "rescale": lambda: fg.CFG(SCALE).rescale(0.7),
    "rescale, all": lambda: fg.CFG(SCALE).rescale(1.0),
    "rescale, denoised": lambda: fg.CFG(SCALE).rescale(0.7, "denoised"),
    "apg": lambda: fg.APG(fg.CFG(SCALE), radius=2.0),
    "apg, prediction": lambda: fg.APG(fg.CFG(SCALE), space="prediction"),
    "zero star": lambda: fg.CFGZeroStar(fg.CFG(SCALE)),
    "tcfg": lambda: fg.TCFG(fg.CFG(SCALE)),
    "mambo": lambda: fg.MAMBO(fg.CFG(SCALE)),
    "adaptive": lambda: fg.Adaptive(fg.CFG(SCALE), 0.5),
}
SHAPES = [(1, 1, 1), (2, 3, 3)]
X0 = (0.5, -0.8)  # denoised = 0.5 x - 0.8 prediction


def fields(shape, dtype, huge):
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(2, *shape, generator=generator)
    return {
        "zero": torch.zeros(shape),
        "constant": torch.full(shape, 0.7),
        "nearly constant": 0.7 + 1e-8 * random[0],
        "random": random[0],
        "other": random[1],
        "opposite": -random[0],
        "tiny": 1e-7 * random[1],
        "huge": huge * random[1],
    }


def guided(name, positive, negative, x):
    """The guided denoised image of one sample by the ops, and the weights."""
    (term,) = MAKES[name]().terms()
    pattern = Pattern((POSITIVE, term.branch))
    row = torch.zeros(8)
    row[0], row[1] = X0
    gram = ops.gram(x[None], [positive[None], negative[None]], torch.tensor(X0))
    products = Products(gram, row[1:2], x.numel())
    weights = projected_weights(pattern, products, torch.tensor([[1.0, 1.0, SCALE - 1]]), {})
    weights = weights.float()
    return reference.combine(x[None], [positive[None], negative[None]], weights, row)[0], weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MAKES)
def test_nothing_blows_up(name, shape, dtype):
    """All pairs of constant, zero, equal, tiny and huge predictions, beside three x: the image is
    finite, and not larger than guidance without a projection could make it.
    """
    huge = 1e4 if dtype == torch.float16 else 1e15
    images = fields(shape, dtype, huge)
    for (p, positive), (n, negative), x in itertools.product(
        images.items(), images.items(), ("zero", "constant", "random")
    ):
        positive, negative = positive.to(dtype), negative.to(dtype)
        image, weights = guided(name, positive, negative, images[x])
        assert image.isfinite().all(), (p, n, x)
        assert weights.isfinite().all(), (p, n, x)
        size = max(positive.float().abs().max(), negative.float().abs().max())
        size = (images[x].abs().max() + size) * 4 * SCALE * max(1, positive.numel()) ** 0.5
        assert image.abs().max() <= size, (p, n, x, image.abs().max(), size)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0, 1e-20, 1e15])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_rescale_leaves_flat_predictions_alone(value, share):
    """Red before: a flat guided image was multiplied by 1 - share."""
    positive, negative = torch.full((2, 5, 5), value), torch.full((2, 5, 5), -0.4 * value)
    for space in ("prediction", "denoised"):
        (term,) = fg.CFG(SCALE).rescale(share, space).terms()
        gram = ops.gram(torch.zeros(1, 2, 5, 5), [positive[None], negative[None]], torch.tensor(X0))
        products = Products(gram, torch.tensor([X0[1]]), 50)
        plan = torch.tensor([[1.0, 1.0, SCALE - 1]])
        weights = projected_weights(Pattern((POSITIVE, term.branch)), products, plan, {})
        torch.testing.assert_close(weights, plan.double())


def test_one_element_is_flat():
    model = fg.Model(
        lambda x, t, c: -x + c.view(-1, 1), fg.Flow(), fg.Prediction("flow"), (1,), null=3
    )
    plain = fg.sample(model, [1, 2], fg.CFG(2.0), steps=4, seeds=[1, 2])
    got = fg.sample(model, [1, 2], fg.CFG(2.0).rescale(1.0), steps=4, seeds=[1, 2])
    torch.testing.assert_close(got, plain)


def test_rescale_keeps_a_small_deviation_beside_a_large_mean():
    """Above rounding it is a deviation: a hundredth of the mean is given back."""
    noise = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    positive, negative = 1.0 + 1e-2 * noise, 1.0 - 1e-2 * noise
    (term,) = fg.CFG(SCALE).rescale(1.0).terms()
    gram = ops.gram(torch.zeros(1, 2, 8, 8), [positive[None], negative[None]], torch.tensor(X0))
    products = Products(gram, torch.tensor([X0[1]]), 128)
    plan = torch.tensor([[1.0, 1.0, SCALE - 1]])
    weights = projected_weights(Pattern((POSITIVE, term.branch)), products, plan, {})
    led = positive.double() + (SCALE - 1) * (positive - negative).double()
    ratio = positive.double().std() / led.std()
    torch.testing.assert_close(weights[0, 1], ratio, rtol=2e-2, atol=0)


@pytest.mark.parametrize("small", [1.0, 2e-2, 1e-3, 1e-5, 1e-7, 1e-12, 0.0])
def test_zero_star_beside_a_vanishing_negative(small):
    """`c + w (c - s u)` with s u the part of c along u, or u itself where it is nothing beside c;
    red before: at 1e-7 the fp32 sum was wrong by more than its own size.
    """
    generator = torch.Generator().manual_seed(0)
    c, direction = torch.randn(2, 3, 4, 4, generator=generator)
    u = small * direction
    image, _ = guided("zero star", c, u, torch.zeros_like(c))
    wide_c, wide_u = c.double(), u.double()
    s = (wide_c * wide_u).sum() / wide_u.square().sum() if small > 1e-2 else 1.0
    want = X0[1] * (s * wide_u + SCALE * (wide_c - s * wide_u))
    torch.testing.assert_close(image.double(), want, rtol=0, atol=1e-2 * want.abs().max().item())


@pytest.mark.parametrize("size", [1e-18, 1e-9, 1.0, 1e9])
@pytest.mark.parametrize("name", [n for n in MAKES if n not in ("apg", "rescale, denoised")])
def test_the_size_of_predictions_does_not_matter(name, size):
    """Red before below 1e-8: floors of norms were absolute, and adaptive guidance switched off."""
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 3, 4, 4, generator=generator)
    _, want = guided(name, c, u, torch.zeros_like(c))
    _, got = guided(name, size * c, size * u, torch.zeros_like(c))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nag_of_zero_equal_and_huge_attention(dtype):
    """Red before in fp16: 5 times a large output was inf, and inf times 0 NaN."""
    from fastguide.staging.contract import Normalized, Segment
    from fastguide.staging.normalized import nag

    generator = torch.Generator().manual_seed(0)
    random = torch.randn(1, 4, 8, generator=generator)
    values = [torch.zeros_like(random), random, -random, 2e4 * random, 1e-6 * random]
    settings = Normalized(torch.tensor([5.0]), 2.5, 0.25)
    for plus, minus in itertools.product(values, values):
        plus, minus = plus.to(dtype), minus.to(dtype)
        segments = [Segment(0, 1, against=1), Segment(1, 2)]
        got = nag(plus, [plus, minus], segments, segments[0], 1, settings)
        assert got.dtype == dtype
        assert got.isfinite().all()
        wide = 5.0 * plus.double() - 4.0 * minus.double()
        most, size = 2.5 * plus.double().abs().sum(-1, True), wide.abs().sum(-1, True)
        wide = torch.where(size > most, wide * (most / size.clamp(min=1e-300)), wide)
        want = 0.25 * wide + 0.75 * plus.double()
        rounding = torch.finfo(dtype)
        sizes = plus.double().abs() + minus.double().abs()  # which cancel
        tolerance = 8 * rounding.eps * sizes.max().item() + rounding.smallest_normal * rounding.eps
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


def test_thresholds_of_zero_and_huge_images():
    how = fg.DynamicThreshold(0.9, 1.0)
    row = torch.tensor([0.0, 1.0, *[0.0] * 6])
    for value in (0.0, 1.0, 1e30):
        p = torch.full((1, 1, 4, 4), value)
        bound = how.bounds(torch.zeros_like(p), [p], torch.ones(1, 2), row)
        assert bound.item() == max(1.0, value) or bound.item() == pytest.approx(value)
    with pytest.raises(ValueError, match="floor is inf"):
        fg.DynamicThreshold(floor=float("inf"))
    with pytest.raises(TypeError, match=r"quantile is '0\.9'"):
        fg.DynamicThreshold("0.9")
