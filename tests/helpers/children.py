"""What tests run in other processes: a spawned one finds it by this file's name."""

import exact
import torch

import fastguide as fg


def sample(seed: int) -> list:
    """A sample of the mixture of two classes."""
    torch.set_num_threads(1)
    model = exact.two_classes(exact.PROCESSES["flow"])
    return fg.sample(model, [0], fg.CFG(2.0), steps=3, seeds=[seed]).tolist()


def fail(_: int) -> None:
    """Raise the error of samples that are not finite."""
    raise fg.NonFiniteError("1 of 1 samples", torch.zeros(1), [None])
