"""Nothing that is asked for is lost: whatever fails, every future is resolved, and nobody waits."""

import gc
import os
import threading
import time
import weakref
from concurrent.futures import CancelledError, wait

import exact
import pytest
import torch

import fastguide as fg


def model_with(net=None):
    """Two exact classes; `net(inner, x, t, cond)` may do something else."""
    model = exact.two_classes(exact.PROCESSES["edm"])
    if net is None:
        return model
    inner = model.net

    def changed(x, t, cond):
        return net(inner, x, t, cond)

    return fg.Model(changed, model.process, model.prediction, model.shape, null=2)


def sampler_of(net=None, **options):
    options = {"steps": 2, "max_batch": 4, "max_wait": 0.2, **options}
    return fg.Sampler(model_with(net), fg.CFG(2.0), **options)


def threads():
    return [one for one in threading.enumerate() if one.name.startswith("fastguide")]


def gone(condition, seconds=20.0):
    """Whether the condition holds within that time, with garbage collected meanwhile."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        gc.collect()
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_batch": 8.0}, TypeError, r"max_batch is 8\.0, but it should be an int of 1 or more"),
        ({"max_batch": True}, TypeError, "max_batch is True"),
        ({"max_batch": 0}, ValueError, "max_batch is 0"),
        ({"max_wait": "soon"}, TypeError, "max_wait is 'soon'"),
        ({"max_wait": float("nan")}, ValueError, "max_wait is nan"),
    ],
)
def test_what_it_cannot_pack_with_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        sampler_of(**options)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), "1"])
def test_timeouts_are_positive(timeout):
    sampler = sampler_of()
    if timeout == 0.0:  # it has passed already
        with pytest.raises(TimeoutError, match=r"within timeout=0\.0 seconds"):
            sampler.submit(0, 0, timeout=timeout).result(60)
        return
    with pytest.raises((ValueError, TypeError), match="timeout is"):
        sampler.submit(0, 0, timeout=timeout)
    with pytest.raises((ValueError, TypeError), match="timeout is"):
        sampler.close(timeout)


def test_a_request_that_fails_fails_alone():
    """Whether its batch runs first or not; the others are run once more, each alone."""
    sizes = []

    def net(inner, x, t, cond):
        sizes.append(len(x))
        if (cond == 1).any():
            raise RuntimeError("class 1 is out of order")
        return inner(x, t, cond)

    sampler = sampler_of(net)
    futures = [sampler.submit(cond, seed) for seed, cond in enumerate((0, 1, 0, 0))]
    for seed, future in enumerate(futures):
        if seed == 1:
            with pytest.raises(RuntimeError, match="class 1 is out of order"):
                future.result(60)
            continue
        want = fg.sample(model_with(), [0], fg.CFG(2.0), steps=2, seeds=[seed])[0]
        torch.testing.assert_close(future.result(60), want)
    sampler.close()
    assert sizes == [8, 2, 2, 2, 2, 2, 2, 2]  # all four; then 0 in two steps, 1 which fails, ...


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_thread_ends_all_that_wait(kind):
    entered, gate = threading.Event(), threading.Event()

    def net(inner, x, t, cond):
        entered.set()
        gate.wait(60)
        raise kind("now")

    sampler = sampler_of(net, max_batch=1)
    futures = [sampler.submit(0, seed) for seed in range(3)]
    entered.wait(60)
    futures.append(sampler.submit(0, 3))
    cancelled = futures.pop(2)
    assert cancelled.cancel()
    gate.set()
    for future in futures:
        with pytest.raises(RuntimeError, match=f"{kind.__name__}.*ended its thread") as caught:
            future.result(60)
        assert isinstance(caught.value.__cause__, kind)
    assert cancelled in wait([cancelled], 60).done
    with pytest.raises(RuntimeError, match="takes no more requests"):
        sampler.submit(0, 4)
    sampler.close()


def test_a_thread_that_dies_of_a_fault_tells_all(monkeypatch):
    from fastguide.serving.packer import Worker

    def broken(self):
        raise ZeroDivisionError("a fault of the packer")

    monkeypatch.setattr(Worker, "_take", broken)
    sampler = sampler_of()
    with pytest.raises(RuntimeError, match="a fault of the packer"):
        sampler.submit(0, 0).result(60)
    with pytest.raises(RuntimeError, match="takes no more requests"):
        sampler.submit(0, 1)


def test_a_callback_that_exits_takes_no_result_away():
    def leave(future):
        raise SystemExit

    gate = threading.Event()

    def net(inner, x, t, cond):
        gate.wait(60)
        return inner(x, t, cond)

    sampler = sampler_of(net, max_batch=1)
    first = sampler.submit(0, 0)
    first.add_done_callback(leave)
    gate.set()
    assert torch.isfinite(first.result(60)).all()
    with pytest.raises(RuntimeError, match="SystemExit"):
        sampler.submit(0, 1).result(60)


def test_after_close_nothing_is_taken():
    sampler, before = sampler_of(), len(threads())
    sampler.close()  # before anything was asked
    with pytest.raises(RuntimeError, match="the sampler was closed"):
        sampler.submit(0, 0)
    assert len(threads()) <= before


def test_close_from_a_callback():
    sampler, told = sampler_of(), []

    def close(future):
        sampler.close()
        told.append(True)

    future = sampler.submit(0, 0)
    future.add_done_callback(close)
    future.result(60)
    assert gone(lambda: told)
    with pytest.raises(RuntimeError, match="the sampler was closed"):
        sampler.submit(0, 1)
    sampler.close()


def test_fifty_samplers_leave_no_thread():
    before = len(threads())
    seen = []
    for seed in range(50):
        sampler = sampler_of(max_wait=0.0)
        assert torch.isfinite(sampler.submit(0, seed).result(60)).all()
        seen.append(weakref.ref(sampler._requests))
    del sampler
    assert gone(lambda: len(threads()) <= before)
    assert all(one() is None for one in seen)


def test_a_sampler_that_is_dropped_finishes_what_was_asked():
    gate = threading.Event()

    def net(inner, x, t, cond):
        gate.wait(60)
        return inner(x, t, cond)

    futures = [sampler_of(net).submit(0, seed) for seed in range(3)]
    gc.collect()
    gate.set()
    assert all(torch.isfinite(future.result(60)).all() for future in futures)


def test_a_hung_network():
    """The deadlines of its requests hold, before and after they run; and so does that of close."""
    gate, entered, before = threading.Event(), threading.Event(), len(threads())

    def net(inner, x, t, cond):
        entered.set()
        gate.wait(60)
        return inner(x, t, cond)

    sampler = sampler_of(net, max_batch=1)
    running = sampler.submit(0, 0, timeout=0.3)
    queued = sampler.submit(0, 1, timeout=0.2)
    patient, impatient = sampler.submit(0, 2), sampler.submit(0, 3, timeout=0.1)
    assert impatient.cancel()
    entered.wait(60)
    began = time.monotonic()
    for future in (running, queued):
        with pytest.raises(TimeoutError, match="was not done within timeout=0"):
            future.result(60)
    assert time.monotonic() - began < 10.0
    with pytest.raises(CancelledError):
        impatient.result(60)
    sampler.close(timeout=0.1)
    with pytest.raises(TimeoutError, match=r"closed, and not done within timeout=0\.1"):
        patient.result(60)
    assert impatient in wait([impatient], 60).done
    gate.set()
    sampler.close()
    assert gone(lambda: len(threads()) <= before)


def test_a_deadline_that_is_kept_changes_nothing():
    sampler = sampler_of()
    futures = [sampler.submit(0, seed, timeout=60.0) for seed in range(6)]
    assert all(torch.isfinite(future.result(60)).all() for future in futures)
    sampler.close()
    held = weakref.ref(sampler._requests)
    del sampler, futures
    assert gone(lambda: held() is None)  # not until their time is up


def test_a_long_queue_is_not_delayed_by_the_wait_for_others():
    """A request that was left over waits from when it came, not from when its turn comes."""

    def net(x, t, cond):
        return x * cond["text"].mean((1, 2)).view(-1, 1, 1, 1)

    model = fg.Model(net, fg.Flow(), fg.Prediction("flow"), (1, 4, 4))
    sampler = fg.Sampler(model, None, steps=1, max_batch=64, max_wait=0.2)
    began = time.monotonic()
    futures = [sampler.submit({"text": torch.ones(1, 1 + n, 2)}, n) for n in range(12)]
    wait(futures, 60)
    assert time.monotonic() - began < 1.5  # not 12 waits
    sampler.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_packer_of_its_own():
    torch.set_num_threads(1)
    sampler = sampler_of()
    want = sampler.submit(0, 7).result(60)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with sampler._runner._lock:
                pass
            same = torch.equal(sampler.submit(0, 7).result(30), want)
            os.write(writing, b"same" if same else b"other")
        except BaseException as error:
            os.write(writing, repr(error).encode()[:200])
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 200) == b"same"
    os.waitpid(child, 0)
    sampler.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_parent_waits_for_fails_in_a_forked_child():
    """There nobody would resolve it, whether it waits or runs; and the parent's is not touched."""
    torch.set_num_threads(1)
    running, free = threading.Event(), threading.Event()

    def hold(inner, x, t, cond):
        running.set()
        free.wait(60)
        return inner(x, t, cond)

    sampler = sampler_of(hold, max_batch=1)
    futures = [sampler.submit(0, seed) for seed in range(2)]
    assert running.wait(60)
    called = []
    futures[0].add_done_callback(called.append)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        errors = {str(one.exception(10)) for one in futures}
        done, _ = wait(futures, 10)
        os.write(writing, repr((errors, len(done), len(called))).encode())
        os._exit(0)
    os.close(writing)
    message = f"the request was made in process {os.getpid()}, which alone knows its result"
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(child, 0)
    assert message in told
    assert told.endswith("2, 0)"), told
    free.set()
    assert all(one.result(60).isfinite().all() for one in futures)
    sampler.close()


def test_a_lock_that_was_held_at_a_fork_is_free_in_the_child():
    from fastguide.common.locks import ProcessLock

    lock, held, free = ProcessLock(), threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            free.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    child = os.fork()
    if child == 0:
        with lock:
            os._exit(3)
    until = time.monotonic() + 20
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number or time.monotonic() > until:
            break
        time.sleep(0.01)
    if not number:
        os.kill(child, 9)
        os.waitpid(child, 0)
    free.set()
    thread.join()
    assert number, "the child waits for ever"
    assert os.waitstatus_to_exitcode(status) == 3
