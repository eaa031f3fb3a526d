"""The ways to run a sampling loop: fastguide's, and what else there is; see loops.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import plain_loops as plain
import torch
from networks import Network, conditions, model_of, null_of
from peers import DiffusersPeer, why_no_diffusers
from record import Skipped, is_fatal
from torch import Tensor

import fastguide as fg

SCALE, WEIGHT = 4.0, 3.0


@dataclass(frozen=True)
class Method:
    """A method as fastguide and as a plain loop have it.

    Args:
        rows: network rows of one sample, for estimates; a backward pass counts as one.
        clean: rows of one sample where all are clean: "forwards" runs so many.
    """

    guidance: Callable[[], fg.Guidance]
    plain: Callable[..., plain.Guided]
    rows: float
    clean: int | None = None
    heads: int = 1
    how: str | None = None


METHODS = {
    "CFG": Method(lambda: fg.CFG(SCALE), partial(plain.cfg, scale=SCALE), 2, 2),
    "superconditioning": Method(
        lambda: fg.Superconditioning(SCALE),
        partial(plain.superconditioning, scale=SCALE),
        1,
        1,
        heads=2,
    ),
    "CFG and PAG": Method(
        lambda: fg.CFG(SCALE) + fg.PAG(WEIGHT),
        partial(plain.perturbed, scale=SCALE, weight=WEIGHT),
        3,
        how="pag",
    ),
    "CFG and SEG": Method(
        lambda: fg.CFG(SCALE) + fg.SEG(WEIGHT),
        partial(plain.perturbed, scale=SCALE, weight=WEIGHT),
        3,
        how="seg",
    ),
    "REG": Method(lambda: fg.REG(fg.CFG(SCALE)), partial(plain.reg, scale=SCALE), 4),
}


@dataclass
class Setting:
    """A network, a batch and a method, and the ways to run them.

    Args:
        ways: by name; each gives the samples.
        missing: the ways that cannot run, and why.
        failed: those that should, but raised this.
        results: the samples of each way.
    """

    network: Network
    net: Any
    batch: int
    method: Method
    steps: int
    device: torch.device
    dtype: torch.dtype
    ways: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gpu = self.device.type == "cuda"
        torch.manual_seed(0)
        self.cond, self.null = conditions(self.network, self.batch, self.device, self.dtype)
        self.seeds = torch.arange(self.batch, device=self.device)
        self.noise = torch.randn(self.batch, *self.network.shape, device=self.device)
        self.levels = list(fg.make_levels(fg.VP(self.network.betas), self.steps).steps())

    def sampler(self, net: Any, **options: Any) -> Callable[[], Tensor]:
        """fastguide's run."""
        model = model_of(self.network, net, self.null, self.method.heads)
        guidance = self.method.guidance()
        sampler = fg.Sampler(model, guidance, steps=self.steps, dtype=self.dtype, **options)
        return lambda: sampler(self.cond, self.seeds, noise=self.noise)

    def loop(self, net: Any, begin: Callable[[], object] = lambda: None) -> Callable[[], Tensor]:
        """The plain loop; `begin` is called before every evaluation."""
        null = null_of(self.null, self.batch, self.device)
        guided = self.method.plain(net, self.dtype, self.cond, null)

        def evaluation(x: Tensor, now: Any) -> Tensor:
            begin()
            return guided(x, now)

        @torch.no_grad()
        def run() -> Tensor:
            return plain.ddim(self.noise, self.levels, evaluation)

        return run

    def forwards(self) -> Callable[[], Tensor]:
        """As many forwards of clean rows as a run has, each a replay of one graph."""
        if self.method.clean is None:
            raise Skipped("some of its rows are not clean")
        if not self.gpu:
            raise Skipped("needs a GPU")
        rows = self.method.clean * self.batch
        x = self.noise.to(self.dtype).repeat(self.method.clean, 1, 1, 1)
        t = torch.full((rows,), self.levels[0][0].t, device=self.device)
        null = null_of(self.null, self.batch, self.device)
        cond = plain.together(self.cond, null) if self.method.clean == 2 else self.cond
        with torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.net(x, t, cond)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = self.net(x, t, cond)

        def run() -> Tensor:
            for _ in range(self.steps):
                graph.replay()
            return out

        return run


def plain_net(setting: Setting) -> Any:
    """The network as the plain loop runs it."""
    how = setting.method.how
    return setting.net if how is None else plain.with_last_third(setting.net, how)


def prepare(setting: Setting, compiled: bool, name: str, method: str) -> None:
    """Fill in the ways that can run here."""

    def offer(way: str, make: Callable[[], Callable[[], Tensor]]) -> None:
        try:
            call = make()
            setting.results[way] = call()  # compiles, captures
        except Skipped as reason:
            setting.missing[way] = str(reason)
        except torch.OutOfMemoryError as error:
            setting.missing[way] = f"out of memory: {error}"
            torch.cuda.empty_cache()
        except Exception as error:  # the other ways are worth having all the same
            if is_fatal(error) or way == "plain":
                raise
            setting.failed[way] = f"{type(error).__name__}: {error}"
        else:
            setting.ways[way] = call

    def on_gpu(make: Callable[[], Callable[[], Tensor]]) -> Callable[[], Callable[[], Tensor]]:
        def made() -> Callable[[], Tensor]:
            if not setting.gpu:
                raise Skipped("needs a GPU")
            return make()

        return made

    begin = torch.compiler.cudagraph_mark_step_begin
    net = setting.net
    offer("plain", lambda: setting.loop(plain_net(setting)))
    offer("eager", lambda: setting.sampler(net))
    offer("graph", on_gpu(lambda: setting.sampler(net, graph=True)))
    offer("forwards", setting.forwards)
    if compiled:
        torch._dynamo.reset()
        fast = partial(torch.compile, dynamic=False)
        offer(
            "reduce-overhead",
            on_gpu(lambda: setting.loop(fast(net, mode="reduce-overhead"), begin)),
        )
        offer("graph, compiled", on_gpu(lambda: setting.sampler(fast(net), graph=True)))
    else:
        setting.missing["reduce-overhead"] = (
            "only CFG on DiT is compiled: compilation takes minutes"
        )
    reason = why_no_diffusers(name, method)
    if reason is None:
        offer("diffusers", lambda: DiffusersPeer(name, method, setting).run)
    else:
        setting.missing["diffusers"] = reason
