"""A recorder without a GPU that behaves as CUDA graphs do: what a capture recorded are its kernels,
with the addresses and the numbers that they were launched with; a replay launches them again, and
runs no Python. Whatever would wait for the device is an error.
"""

import gc
import threading
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastguide as fg
from fastguide.engine.graph import Graphs
from fastguide.engine.recorder import until_compiled


class Tape(TorchDispatchMode):
    """Keeps the ops that are no views, with the tensors that they read and gave."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a capture waits for the device")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            given = [] if any(one.alias_info for one in func._schema.returns) else tree_leaves(out)
            self.ops.append((func, args, kwargs, given))
        return out

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, given in self.ops:
                found = tree_leaves(func(*args, **kwargs))
                for to, value in zip(given, found, strict=False):
                    if isinstance(to, torch.Tensor):
                        to.copy_(value)


class Fake:
    """Counts what it is asked for; after the first `good` captures `fails` do not fit."""

    def __init__(self, fails=0, good=0):
        self.warmed = self.released = 0
        self.fails, self.good, self.seen = fails, good, []
        self.bytes = 2**20

    def warm(self, call):
        self.warmed += 1
        until_compiled(call)

    def record(self, call):
        self.good -= 1
        if self.fails and self.good < 0:
            self.fails -= 1
            raise torch.OutOfMemoryError("out of memory")
        with Tape() as tape, mock.patch("fastguide.engine.latch.capturing", return_value=True):
            outputs = call()

        def replay():
            self.seen.append(threading.get_ident())
            tape.replay()

        return replay, outputs

    def release(self):
        self.alive = live_tensors()
        self.released += 1

    def free(self):
        return self.bytes

    @contextmanager
    def turn(self):
        yield


def live_tensors():
    """How many there are that nobody has freed."""
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


def captured(model, guidance, limit=8, fails=0, good=0, graph="whole", **options):
    """A sampler with a faked recorder."""
    sampler = fg.Sampler(model, guidance, **options)
    runner = sampler._runner
    runner.graph, runner.graphs = graph, Graphs(Fake(fails, good), limit)
    return sampler
