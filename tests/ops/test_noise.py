"""Noise: Philox against its published vectors, the same stream everywhere, and truly normal."""

import math

import pytest
import torch

import fastguide as fg
from fastguide import ops, reference
from fastguide.ops import as_seeds


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # the known answers of Random123 (Salmon et al. 2011) for philox4x32-10
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    words = reference.philox4x32(
        [torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key]
    )
    assert [int(word) for word in words] == expected


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (5, 7), (3, 5, 7), (4, 33, 65)])
def test_kernel_equals_the_reference(shape):
    seeds = [0, 1, 12345678901234, 2**63 - 1]
    got = fg.noise(seeds, shape, evaluation=17)
    want = reference.noise(torch.tensor(seeds), 17, math.prod(shape)).view(4, *shape)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=2e-6)


def test_an_element_depends_on_seed_evaluation_and_index_alone():
    batch = fg.noise(range(64), (3, 8, 8))
    assert torch.equal(batch[37], fg.noise([37], (192,))[0].view(3, 8, 8))
    # a prefix is a prefix, whatever the length
    assert torch.equal(fg.noise(5, (10_001,))[:, :777], fg.noise(5, (777,)))
    other = fg.noise(range(64), (3, 8, 8), evaluation=1)
    assert not torch.isclose(batch, other).flatten(1).all(1).any()


def test_the_evaluation_may_lie_on_the_device():
    for e in (0, 3, 2**31 + 5):
        want = fg.noise([1, 2**62], (3, 7), e)
        assert torch.equal(fg.noise([1, 2**62], (3, 7), torch.tensor([e])), want)
        seeds = torch.tensor([0, 9, 2**63 - 1])
        assert torch.equal(ops.derive_seeds(seeds, torch.tensor([e])), ops.derive_seeds(seeds, e))
    for wrong in (torch.tensor([1.0]), torch.tensor([1, 2])):
        with pytest.raises(ValueError, match="evaluation is torch"):
            fg.noise(0, (3,), wrong)


def test_each_sample_may_have_an_evaluation_of_its_own():
    found = fg.noise([5, 2**62, 5], (3, 7), torch.tensor([0, 3, 9]))
    for i, (seed, e) in enumerate([(5, 0), (2**62, 3), (5, 9)]):
        assert torch.equal(found[i], fg.noise(seed, (3, 7), e)[0])
    seeds, numbers = torch.tensor([0, 9, 9]), torch.tensor([4, 4, 2**31])
    derived = ops.derive_seeds(seeds, numbers)
    assert [int(one) for one in derived] == [
        int(ops.derive_seeds(seeds[i : i + 1], int(numbers[i]))) for i in range(3)
    ]


def test_moments_and_independence():
    x = fg.noise(range(8), (250_000,)).double()
    n = x.numel()
    assert x.mean().abs() < 4 / n**0.5
    assert (x.var() - 1).abs() < 4 * (2 / n) ** 0.5
    assert x.pow(3).mean().abs() < 4 * (15 / n) ** 0.5
    assert (x.pow(4).mean() - 3).abs() < 4 * (96 / n) ** 0.5
    limit = 4.5 / 250_000**0.5
    off_diagonal = torch.corrcoef(x) - torch.eye(8, dtype=torch.float64)
    assert off_diagonal.abs().max() < limit  # seeds 0 ... 7
    for lag in (1, 2, 3, 4, 5):
        assert (x[:, lag:] * x[:, :-lag]).mean().abs() < limit
    evaluations = torch.cat([fg.noise(3, (250_000,), evaluation=e) for e in range(4)]).double()
    assert (torch.corrcoef(evaluations) - torch.eye(4, dtype=torch.float64)).abs().max() < limit


def test_distribution_is_normal():
    x = fg.noise(11, (1_000_000,)).double().flatten().sort().values
    cdf = torch.special.ndtr(x)
    n = x.numel()
    gap = (cdf - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max() + 0.5 / n
    assert gap < 1.95 / n**0.5  # Kolmogorov-Smirnov, p = 0.001
    assert x.max() > 4.5
    assert x.min() < -4.5


@pytest.mark.parametrize(
    ("seeds", "shape", "evaluation", "message"),
    [
        ([-1], (3,), 0, "seeds has -1"),
        ([2**63], (3,), 0, "seeds has 9223372036854775808"),
        (torch.tensor([], dtype=torch.int64), (3,), 0, "seeds is empty"),
        ("12", (3,), 0, "seeds is '12'"),
        (1.0, (3,), 0, r"seeds is 1\.0"),
        ([1.5], (3,), 0, "seeds has 1.5"),
        ([True], (3,), 0, "seeds has True"),
        ([], (3,), 0, "seeds is empty"),
        (torch.zeros(2, 2, dtype=torch.int64), (3,), 0, "seeds is torch.int64 of shape"),
        (torch.zeros(2), (3,), 0, "seeds is torch.float32"),
        ([1], (3, 0), 0, r"shape\[1\] is 0"),
        ([1], (3,), -1, "evaluation is -1"),
    ],
)
def test_errors(seeds, shape, evaluation, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fg.noise(seeds, shape, evaluation)


def test_seeds_of_a_tensor_are_looked_at():
    with pytest.raises(ValueError, match="seeds has -2"):
        as_seeds(torch.tensor([3, -2]))
    model = fg.Model(lambda x, t, c: -x, fg.Flow(), fg.Prediction("flow"), (1, 2, 2))
    with pytest.raises(ValueError, match="seeds has -2"):
        fg.sample(model, steps=1, seeds=torch.tensor([3, -2]))


def test_opcheck():
    seeds = torch.tensor([3, 4])
    torch.library.opcheck(torch.ops.fastguide.noise.default, (seeds, 2, 37))
    torch.library.opcheck(torch.ops.fastguide.noise.default, (seeds, 0, 37, torch.tensor([2])))


def test_compiles_without_a_graph_break():
    compiled = torch.compile(lambda s: torch.ops.fastguide.noise(s, 1, 24) * 2, fullgraph=True)
    seeds = torch.tensor([3, 4])
    torch.testing.assert_close(compiled(seeds), 2 * fg.noise(seeds, (24,), 1))
