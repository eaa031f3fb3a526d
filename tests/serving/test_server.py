"""Continuous batches: requests of any kind share evaluations, and each is what it is alone."""

import random
import threading
import time
from concurrent.futures import CancelledError, wait

import pytest
import torch
from mixed_requests import GUIDANCES, SOLVERS, drawn
from recorder import Fake
from test_perturbation import dit, model_of

import fastguide as fg
from fastguide.engine.graph import Graphs
from fastguide.serving.choice import choose
from fastguide.serving.loop import Full


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return model_of(dit())


def close(found, want, loss=1.0):
    """To 1e-5 of the sample's size; where rounding is multiplied, to so many times that."""
    atol = 1e-5 * loss * float(want.abs().max())
    torch.testing.assert_close(found, want, rtol=1e-5 * loss, atol=atol)


def loss_of(guidance):
    """REG's difference divides the difference of two predictions by 0.003 sigma."""
    terms = guidance.terms() if guidance is not None else ()
    hows = [term.branch.rectified for term in terms]
    return 100.0 if any(how is not None and how.mode == "difference" for how in hows) else 1.0


def alone(model, cond, seed, **settings):
    return fg.sample(model, [cond], seeds=[seed], **settings)[0]


@pytest.mark.parametrize("name", GUIDANCES)
def test_a_request_is_what_it_is_alone(name, model):
    """Of one guidance, at different scales, solvers and numbers of steps, joining in turn."""
    with fg.Server(model, max_batch=3, max_live=4) as server:
        asked = []
        for i, solver in enumerate(SOLVERS.values()):
            settings = {"guidance": GUIDANCES[name](2.0 + i), "solver": solver, "steps": 2 + i % 3}
            asked.append((i % 5, 10 + i, settings, server.submit(i % 5, 10 + i, **settings)))
        for cond, seed, settings, future in asked:
            want = alone(model, cond, seed, **settings)
            close(future.result(60), want, loss_of(settings["guidance"]))
        assert server.stats().samples > server.stats().batches  # some did share


@pytest.mark.parametrize("graph", [False, True])
def test_mixed_requests_with_failures_and_cancellations(graph, monkeypatch):
    """A tenth is cancelled, some fail, some are watched; what is left is as it is alone, and nobody
    is passed over more than is stated.
    """
    torch.manual_seed(0)
    inner = dit()
    model = model_of(inner)
    source, shown = random.Random(5), []

    def failing(self_stage):
        def run(state, cond, routing):
            if isinstance(cond, torch.Tensor) and bool((cond == 4).any()):
                raise ArithmeticError("class 4")
            return self_stage.run(state, cond, routing)

        return self_stage._replace(run=run)

    stages = list(inner.stages)
    poisoned = next(i for i, stage in enumerate(stages) if stage.cond)
    stages[poisoned] = failing(stages[poisoned])
    broken = _Broken(stages, inner.middle)
    served = fg.Model(broken, model.process, model.prediction, model.shape, null=model.null)
    # a capture cannot look at a tensor's values
    server = fg.Server(model if graph else served, max_batch=4, max_live=9, patience=5)
    if graph:
        monkeypatch.setattr(server, "_made", lambda made=server._made: _captured(made()))
    few = ("cfg", "interval", "apg")  # captures
    guidances = {n: g for n, g in GUIDANCES.items() if (n in few if graph else n != "icg")}
    asked = []
    for i in range(12 if graph else 40):
        settings = drawn(source, (2, 4), guidances)
        cond = 4 if i % 20 == 7 and not graph else source.randrange(4)
        watched = {"callback": lambda p, i=i: shown.append((i, p.evaluation))} if i % 7 == 0 else {}
        future = server.submit(cond, i, previews=[2], **watched, **settings)
        if i % 10 == 3:
            time.sleep(0.01 * source.random())
            future.cancel()
        asked.append((cond, i, settings, future))
    wait([future for *_, future in asked], 120)
    server.close()
    counts = server.stats()
    for cond, seed, settings, future in asked:
        if future.cancelled():
            continue
        if cond == 4:
            with pytest.raises(ArithmeticError, match="class 4"):
                future.result(0)
        else:
            want = alone(model, cond, seed, **settings)
            close(future.result(0), want, loss_of(settings["guidance"]))
    done = counts.finished + counts.failed + counts.cancelled
    assert (counts.requests, done) == (len(asked), len(asked))
    assert counts.passed <= 5 + 9 - 1
    assert {e for _, e in shown} == {2}
    loop = next(iter(server._loops.values()))
    assert sorted(loop.places.free) == list(range(9))
    assert not loop.places.kept
    if graph:
        assert loop.batches.graphs.replays > loop.batches.graphs.captures > 0


class _Broken(torch.nn.Module):
    """A network of the given stages."""

    def __init__(self, stages, middle):
        super().__init__()
        self.stages, self.middle = stages, middle
        self.weight = torch.nn.Parameter(torch.zeros(1))


def _captured(loop):
    loop.batches.graphs = Graphs(Fake(), 64)
    return loop


def test_bits_do_not_depend_on_neighbours_or_place(model):
    source = random.Random(3)
    kinds = [drawn(source) for _ in range(8)]
    with fg.Server(model, max_batch=4, batch_invariant=True) as server:
        want = [server.submit(i % 5, i, **kind).result(60) for i, kind in enumerate(kinds)]
        for _ in range(2):
            order = source.sample(range(8), 8)
            futures = {i: server.submit(i % 5, i, **kinds[i]) for i in order}
            others = [server.submit(2, 99 + i, **kinds[i]) for i in order]
            for i, future in futures.items():
                assert torch.equal(future.result(60), want[i])
            wait(others)


def test_start_images_masks_and_negatives(model):
    image = torch.randn(model.shape)
    mask = torch.zeros(model.shape)
    mask[..., :4] = 1.0
    cases = [
        ({"strength": 0.6}, {"init": image}),
        ({}, {"known": image, "mask": mask}),
        ({"solver": fg.ddim(eta=1.0)}, {"known": image, "mask": mask}),
        ({}, {"negative": 3}),
    ]
    with fg.Server(model, max_batch=4) as server:
        futures = [
            server.submit(1, i, fg.CFG(3.0), steps=5, **a, **b) for i, (a, b) in enumerate(cases)
        ]
        for i, (a, b) in enumerate(cases):
            b = {"negative": [3]} if "negative" in b else b
            sampler = fg.Sampler(model, fg.CFG(3.0), steps=5, **a)
            close(futures[i].result(60), sampler([1], [i], **b)[0])
        with pytest.raises(ValueError, match="init is given, but strength"):
            server.submit(1, 0, init=image)
        with pytest.raises(ValueError, match="mask is given, but not the known"):
            server.submit(1, 0, mask=mask)


def test_previews_are_those_of_a_call_and_may_stop(model):
    found, want = [], []
    with fg.Server(model, max_batch=2) as server:
        busy = [server.submit(0, 7, solver=fg.dpmpp_2m, steps=6) for _ in range(3)]
        last = server.submit(1, 5, fg.CFG(2.0), steps=4, callback=found.append, previews=3)
        last.result(60)
        stopped = server.submit(1, 5, fg.CFG(2.0), steps=4, callback=lambda _: fg.STOP)
        first = stopped.result(60)
        with pytest.raises(ZeroDivisionError):
            server.submit(1, 5, steps=4, callback=lambda _: 1 // 0).result(60)
        wait(busy)

    def keep(progress):
        want.append((progress.x.clone(), progress.denoised.clone()))

    fg.Sampler(model, fg.CFG(2.0), steps=4)([1], [5], callback=keep)
    assert [one.evaluation for one in found] == [1, 2, 3]
    for one, (x, denoised) in zip(found, want, strict=False):
        close(one.x, x[0])
        close(one.denoised, denoised[0])
    close(first, want[0][1][0])


def test_the_first_in_turn_and_nobody_for_ever():
    class One:
        def __init__(self, order, priority=0.0):
            self.order, self.priority, self.passed, self.longest = order, priority, 0, 0

    live = [One(i) for i in range(6)]
    key = {id(one): one.order % 3 for one in live}
    assert [one.order for one in choose(live, lambda one: key[id(one)], 2, 4)] == [0, 3]
    live[5].priority = 1.0
    assert [one.order for one in choose(live, lambda one: key[id(one)], 2, 4)] == [5, 2]
    for _ in range(60):
        choose(live, lambda one: key[id(one)], 1, 4)
    assert max(one.longest for one in live) <= 4 + 6 - 1
    assert min(one.longest for one in live) >= 4  # it was in play


class Gate:
    """A network that waits at its first evaluation."""

    def __init__(self, model):
        self.inner, self.open, self.began = model.net, threading.Event(), threading.Event()
        self.served = fg.Model(self, model.process, model.prediction, model.shape, null=model.null)

    def __call__(self, x, t, cond):
        self.began.set()
        assert self.open.wait(30)
        return self.inner(x, t, cond)


def test_priority_goes_first_and_a_full_queue_is_an_error(model):
    gate, order = Gate(model), []
    server = fg.Server(gate.served, max_batch=1, max_live=1, max_queue=3)
    futures = [server.submit(0, 0, steps=2)]
    assert gate.began.wait(30)
    for name, priority in (("a", 0), ("b", 0), ("c", 1)):
        futures.append(server.submit(0, 1, steps=2, priority=priority))
        futures[-1].add_done_callback(lambda _, name=name: order.append(name))
    with pytest.raises(Full, match="3 requests wait already"):
        server.submit(0, 2)
    gate.open.set()
    wait(futures, 60)
    server.close()
    assert order == ["c", "a", "b"]


def test_deadlines_and_cancellation_within_a_run(model):
    gate = Gate(model)
    server = fg.Server(gate.served, max_batch=2)
    late = server.submit(0, 0, steps=3, timeout=0.05)
    gone = server.submit(0, 1, steps=3)
    kept = server.submit(0, 2, steps=3)
    assert gate.began.wait(30)
    with pytest.raises(TimeoutError, match=r"timeout=0\.05"):
        late.result(30)
    assert gone.cancel()
    gate.open.set()
    close(kept.result(60), alone(model, 0, 2, steps=3))
    with pytest.raises(CancelledError):
        gone.result(0)
    server.close()
    with pytest.raises(RuntimeError, match="closed"):
        server.submit(0)


def test_what_ends_the_thread_ends_all(model):
    asked = threading.Event()

    def net(x, t, cond):
        assert asked.wait(30)
        raise SystemExit(3)

    server = fg.Server(fg.Model(net, model.process, model.prediction, model.shape, null=5))
    futures = [server.submit(0, i) for i in range(3)]
    asked.set()
    for future in futures:
        with pytest.raises(RuntimeError, match="SystemExit"):
            future.result(30)
    with pytest.raises(RuntimeError, match="SystemExit"):
        server.submit(0)


def test_one_that_is_not_finite_fails_alone(model):
    def net(x, t, cond):
        out = model.net(x, t, cond)
        return torch.where((cond == 3).view(-1, 1, 1, 1), torch.nan, out)

    with fg.Server(fg.Model(net, model.process, model.prediction, model.shape, null=5)) as server:
        futures = [server.submit(cond, cond, solver=fg.dpmpp_2m, steps=3) for cond in (1, 3, 2)]
        with pytest.raises(fg.NonFiniteError, match=r"seed 3.*evaluation 1 of 3"):
            futures[1].result(30)
        again = server.submit(3, 3, steps=2)
        with pytest.raises(fg.NonFiniteError):
            again.result(30)
        # the place of one that was not finite leaves nothing to the next
        for cond in (1, 2):
            close(
                futures[cond - 1 if cond == 1 else 2].result(30),
                alone(model, cond, cond, solver=fg.dpmpp_2m, steps=3),
            )
        close(
            server.submit(1, 8, solver=fg.lms, steps=3).result(30),
            alone(model, 1, 8, solver=fg.lms, steps=3),
        )


def test_a_rollout_of_a_server_is_that_of_a_sampler(model):
    sampler = fg.Sampler(model, fg.CFG(2.0), fg.ddim(eta=0.8), steps=4)
    want = sampler.rollout([1], [5])
    with fg.Server(sampler) as server:
        beside = server.submit(3, 2)
        found = server.submit(1, 5, rollout=True).result(60)
        beside.result(60)
    close(found.x, want.x)
    close(found.samples, sampler([1], [5]))
    assert torch.equal(found.log_probs, want.log_probs)
    assert (found.stds, found.levels, found.times) == (want.stds, want.levels, want.times)


def test_a_server_that_is_dropped_finishes_and_ends_its_thread(model):
    before = threading.active_count()
    server = fg.Server(model)
    future = server.submit(0, 3, steps=2)
    thread = next(iter(server._loops.values())).thread
    del server
    close(future.result(60), alone(model, 0, 3, steps=2))
    thread.join(30)
    assert not thread.is_alive()
    assert threading.active_count() <= before


def test_the_settings_of_a_sampler_are_the_default(model):
    sampler = fg.Sampler(model, fg.CFG(3.0), fg.heun, steps=3)
    with fg.Server(sampler) as server:
        close(server.submit(2, 4).result(60), sampler([2], [4])[0])
        close(
            server.submit(2, 4, steps=2).result(60),
            alone(model, 2, 4, guidance=fg.CFG(3.0), solver=fg.heun, steps=2),
        )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"priority": "high"}, TypeError, "priority is 'high'"),
        ({"timeout": -1.0}, ValueError, r"timeout is -1\.0"),
        ({"steps": 0}, ValueError, "steps is 0"),
        (
            {"guidance": fg.CFG(torch.tensor([1.0, 2.0]))},
            ValueError,
            "guidance holds values for 2 samples",
        ),
        ({"previews": [9], "callback": print, "steps": 3}, ValueError, "previews has 9"),
        ({"callback": 3}, TypeError, "callback is 3"),
    ],
)
def test_errors_name_the_argument(model, arguments, error, message):
    with fg.Server(model) as server, pytest.raises(error, match=message):
        server.submit(0, **arguments)


def test_arguments_of_a_server(model):
    with pytest.raises(ValueError, match="max_batch is 0"):
        fg.Server(model, max_batch=0)
    with pytest.raises(ValueError, match="graph is True, but the sampler runs on cpu"):
        fg.Server(model, graph=True)
    with pytest.raises(ValueError, match="those of the sampler"):
        fg.Server(fg.Sampler(model), dtype=torch.float32)
    with pytest.raises(ValueError, match="a Sampler with compile"):
        fg.Server(fg.Sampler(model, compile=True))
    along = fg.Sampler(model, solver=fg.euler_ancestral, noise="brownian")
    with pytest.raises(ValueError, match="noise is 'brownian'"):
        along.rollout(0, 0)
    with fg.Server(along) as server, pytest.raises(ValueError, match="noise is 'brownian'"):
        server.submit(0)
