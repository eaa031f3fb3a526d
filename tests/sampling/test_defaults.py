"""What surrounds a run does not matter: torch's default dtype, inference mode; and conditions may
have different lengths.
"""

import numpy as np
import pytest
import torch
from exact import two_classes

import fastguide as fg
from fastguide.nets import DiT


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def dit():
    torch.manual_seed(0)
    net = DiT(channels=1, patch=2, width=16, depth=2, attention_heads=2, classes=2)
    return fg.Model(net.eval(), fg.Flow(), fg.Prediction("flow"), (1, 4, 4), null=2)


def test_the_default_dtype_does_not_matter(double):
    torch.set_default_dtype(torch.float32)
    model = two_classes(fg.VP("linear"))
    networks = [dit(), model]
    want = [fg.sample(m, [0, 1], fg.CFG(2.0), steps=3, seeds=[0, 1]) for m in networks]
    torch.set_default_dtype(torch.float64)
    for m, images in zip(networks, want, strict=True):
        got = fg.sample(m, [0, 1], fg.CFG(2.0), steps=3, seeds=[0, 1])
        assert got.dtype == torch.float32
        assert torch.equal(got, images)


def test_a_null_of_python_floats_is_fp32_whatever_the_default(double):
    dtypes = []

    def net(x, t, cond):
        dtypes.append(cond.dtype)
        return 0.1 * x + cond.view(-1, 1)

    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (2,), null=0.5)
    fg.sample(model, torch.ones(1, dtype=torch.float32), fg.CFG(2.0), steps=2)
    assert set(dtypes) == {torch.float32}


def test_warmup_and_memory_under_inference_mode():
    sampler = fg.Sampler(dit(), fg.REG(fg.CFG(2.0)), steps=2)
    with torch.inference_mode():
        assert sampler.warmup([1], 0)[1] in ("batched", "sequential")
        assert sampler.memory(2).run > 0
        assert torch.isfinite(sampler([0], [0])).all()


def pooled(x, t, cond):
    """A network of prompts `[B, tokens, 1]` of any length."""
    return 0.1 * x + cond.mean(1)


@pytest.mark.parametrize("rows", [None, "batched", "sequential"])
def test_conditions_of_unequal_lengths_run_in_rows_of_their_own(rows):
    model = fg.Model(pooled, fg.Flow(), fg.Prediction("flow"), (1,))
    generator = torch.Generator().manual_seed(0)
    pos, neg = (torch.randn(2, n, 1, generator=generator) for n in (7, 9))
    sampler = fg.Sampler(model, fg.CFG(3.0), steps=3, rows=rows)
    got = sampler(pos, [0, 1], negative=neg)
    same = fg.Sampler(model, fg.CFG(3.0), steps=3)
    means = (pos.mean(1, keepdim=True), neg.mean(1, keepdim=True))
    assert torch.allclose(got, same(means[0], [0, 1], negative=means[1]), atol=1e-6)


def test_a_negative_that_is_missing_is_named():
    model = fg.Model(pooled, fg.Flow(), fg.Prediction("flow"), (1,))
    with pytest.raises(ValueError, match="negative is None"):
        fg.sample(model, torch.ones(1, 7, 1), fg.CFG(3.0), steps=2)


def test_seeds_may_be_numpys():
    assert torch.equal(fg.noise(np.arange(3), (2,)), fg.noise(range(3), (2,)))
    assert torch.equal(fg.noise(np.int64(5), (2,)), fg.noise(5, (2,)))
