"""Averages of any length after the training."""

import numpy as np
import pytest
import torch
from command import fastguide
from test_training import write_idx

import fastguide as fg
from fastguide.training.posthoc import PowerAverages, gamma_of, kept_averages, reconstruct

STEPS, KEEP = 1000, 50


def walk(step, generator):
    """Weights that settle, with noise on top."""
    drift = torch.linspace(-1, 1, 40) / (1 + step / 100)
    return {"a": drift + 0.2 * torch.randn(40, generator=generator)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of averages of lengths 0.05 and 0.1, others tracked directly, the last weights."""
    out = tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(0)
    weights = walk(0, generator)
    kept = PowerAverages((0.05, 0.1), weights)
    direct = PowerAverages((0.05, 0.07, 0.1, 0.14), weights)
    for step in range(1, STEPS + 1):
        weights = walk(step, generator)
        for averages in (kept, direct):
            averages.update(step, weights)
        if step % KEEP == 0:
            kept.save(out, step)
    return out, direct.averages, weights


@pytest.mark.parametrize("length", [0.03, 0.05, 0.1, 0.2])
def test_the_exponent_gives_the_length(length):
    gamma = gamma_of(length)
    t = (np.arange(200_000) + 0.5) / 200_000
    profile = (gamma + 1) * t**gamma
    mean = (profile * t).mean()
    assert abs(((profile * (t - mean) ** 2).mean()) ** 0.5 - length) < 1e-4


def test_an_average_weighs_step_t_by_a_power_of_t(run):
    _, direct, _ = run
    generator = torch.Generator().manual_seed(0)
    walk(0, generator)
    every = torch.stack([walk(step, generator)["a"] for step in range(1, STEPS + 1)])
    profile = torch.arange(1, STEPS + 1).double() ** gamma_of(0.1)
    want = (profile[:, None] * every.double()).sum(0) / profile.sum()
    assert (direct[0.1]["a"] - want).abs().max() < 2e-3


@pytest.mark.parametrize("length", [0.05, 0.1])
def test_a_kept_average_comes_back(run, length):
    out, direct, _ = run
    kept = kept_averages(out)
    assert len(kept) == 2 * STEPS // KEEP
    got = reconstruct(kept, length)["a"]
    torch.testing.assert_close(got, direct[length]["a"], rtol=1e-5, atol=1e-6)
    early = reconstruct(kept, length, 500)["a"]
    assert (early - got).abs().max() > 1e-3


@pytest.mark.parametrize("length", [0.07, 0.14])
def test_another_length_agrees_with_one_tracked_directly(run, length):
    out, direct, last = run
    want = direct[length]["a"]
    error = (reconstruct(kept_averages(out), length)["a"] - want).norm()
    assert error < 0.01 * (want - last["a"]).norm()


def test_train_and_reconstruct_from_the_command_line(tmp_path):
    write_idx(tmp_path, count=40)
    options = ["--steps", 6, "--batch", 16, "--width", 24, "--depth", 1, "--patch", 2]
    options += ["--attention-heads", 2, "--lengths", "0.05,0.1", "--keep-every", 2]
    done = fastguide("train", tmp_path, tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    assert {one.step for one in kept_averages(tmp_path / "run")} == {2, 4, 6}
    done = fastguide("ema", tmp_path / "run", tmp_path / "long", "--length", 0.2)
    assert done.returncode == 0, done.stderr
    long, last = fg.load(tmp_path / "long").net, fg.load(tmp_path / "run").net
    pairs = zip(long.parameters(), last.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    done = fastguide("ema", tmp_path / "run", tmp_path / "x", "--length", 0.4)
    assert done.returncode == 2
    assert "length is 0.4, but it should lie in (0, 0.2887)" in done.stderr


def test_errors_name_what_is_wrong(run, tmp_path):
    out, _, _ = run
    with pytest.raises(FileNotFoundError, match="holds no averages"):
        kept_averages(tmp_path)
    with pytest.raises(ValueError, match="step is 5, but averages are kept from step 50 to 1000"):
        reconstruct(kept_averages(out), 0.1, 5)
    with pytest.raises(ValueError, match="step is 2000"):
        reconstruct(kept_averages(out), 0.1, 2000)
    (tmp_path / "averages").mkdir()
    (tmp_path / "averages" / "0.05-1.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="is damaged"):
        kept_averages(tmp_path)
