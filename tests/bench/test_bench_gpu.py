"""The tool behind `make gpu`, on the CPU with tiny networks: what it measures is what it says."""

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastguide as fg
from fastguide.kernels import tuning

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/gpu"))
import every_op
import gpu
import gpu_tests
import loops
import networks
import ops_gpu
import poster
import record
import shapes
import steps
import timing
import tune
import ways
from op_cases import OpCase, difference
from record import Deadline, Job, Report, Skipped

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nets():
    """The tiny networks, one at a time."""
    torch.manual_seed(0)
    return loops.Nets(networks.TINY, CPU, torch.float32)


@pytest.mark.parametrize("name", ["DiT-S/2", "ADM-64", "SD", "SDXL"])
def test_plain_loops_do_what_fastguide_does(name, nets):
    """A wrong peer would make a wrong ratio."""
    others = []
    for method in ways.METHODS.values():
        setting = ways.Setting(networks.TINY[name], nets.get(name), 2, method, 4, CPU, nets.dtype)
        want = setting.loop(ways.plain_net(setting))()
        assert difference(setting.sampler(setting.net)(), want) <= 1e-4
        others.append(want)
    apart = [difference(a, b) for i, a in enumerate(others) for b in others[:i]]
    assert min(apart) > 0.02  # so that the agreement says something of each method


@pytest.mark.parametrize("shape", [shapes.SD, shapes.SDXL], ids=["SD", "SDXL"])
def test_u_nets_have_as_many_parameters_as_published(shape):
    with torch.device("meta"):
        net = shapes.TextUNet(shape)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(shape.parameters, rel=0.02)


@pytest.mark.parametrize(
    ("name", "parameters"), [("DiT-S/2", 33e6), ("DiT-XL/2", 675e6), ("ADM-64", 296e6)]
)
def test_networks_have_as_many_parameters_as_published(name, parameters):
    with torch.device("meta"):
        net = networks.NETWORKS[name].make()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=0.02)


def test_the_u_net_is_staged_and_names_its_middle(nets):
    net = nets.get("SDXL")
    sampler = fg.Sampler(
        networks.model_of(
            networks.TINY["SDXL"],
            net,
            networks.conditions(networks.TINY["SDXL"], 1, CPU, torch.float32)[1],
        ),
        fg.CFG(2.0) + fg.PAG(2.0),
        steps=2,
    )
    cond, _ = networks.conditions(networks.TINY["SDXL"], 1, CPU, torch.float32)
    sampler(cond, [0])
    assert net.middle == ("middle.0",)
    assert sampler.stats().stage_rows_shared > 0  # perturbed rows fork in the middle


def test_a_row_of_the_loops(nets, tmp_path):
    report = Report(tmp_path / "loops.json")
    assert report.run(loops.jobs(nets, tiny=True)[:2], Deadline(100.0))
    cfg, single = json.loads((tmp_path / "loops.json").read_text())["rows"]
    assert set(cfg["seconds"]) == {"plain", "eager"}
    assert cfg["missing"]["graph"] == cfg["missing"]["forwards"] == "needs a GPU"
    assert single["method"] == "superconditioning"
    (one,) = loops.across([cfg, single])
    assert one["value"] == single["seconds"]["eager"] / cfg["seconds"]["eager"]


def test_results_that_differ_fail_the_row(nets, monkeypatch):
    wrong = ways.METHODS["CFG"].__class__(lambda: fg.CFG(2.0), ways.METHODS["CFG"].plain, 2, 2)
    setting = ways.Setting(
        networks.TINY["DiT-S/2"], nets.get("DiT-S/2"), 1, wrong, 2, CPU, torch.float32
    )
    with pytest.raises(AssertionError, match="differ from the plain loop's"):
        loops.measure(setting, False, "DiT-S/2", "CFG")


def test_a_way_that_fails_leaves_the_others(nets, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no graph today")

    setting = ways.Setting(
        networks.TINY["DiT-S/2"], nets.get("DiT-S/2"), 1, ways.METHODS["CFG"], 2, CPU, nets.dtype
    )
    monkeypatch.setattr(setting, "forwards", broken)
    row = loops.measure(setting, False, "DiT-S/2", "CFG")
    assert row["status"] == "failed"
    assert "no graph today" in row["reason"]
    assert {"plain", "eager"} <= set(row["seconds"])


def test_targets_of_a_row():
    row = {"network": "DiT-S/2", "batch": 1}
    row["seconds"] = {
        "plain": 6.0,
        "graph": 2.0,
        "forwards": 1.9,
        "reduce-overhead": 1.5,
        "graph, compiled": 1.4,
    }
    found = {one["name"]: (round(one["value"], 3), one["met"]) for one in loops.targets(row)}
    assert found == {
        "plain loop over graph": (3.0, True),
        "graph over the forwards alone": (1.053, False),
        "the faster of ours over reduce-overhead": (0.933, True),
    }
    assert loops.targets({**row, "seconds": {"plain": 6.0}}) == []


def test_the_poster_beside_its_published_figures(nets, tmp_path):
    report = Report(tmp_path / "poster.json")
    assert report.run(poster.jobs(nets, tiny=True)[:3], Deadline(100.0))
    cfg, reg, memory = report.rows
    assert (cfg["published_seconds"], reg["published_seconds"]) == (59.79, 94.23)
    assert (cfg["steps"], cfg["steps_measured"]) == (250, 3)
    assert cfg["published_over_ours"] is None  # fewer steps are no comparison
    assert "targets" not in cfg
    assert memory["bytes"]["REG"]["eager"] > memory["bytes"]["CFG"]["eager"] > memory["weights"]
    assert memory["published_ratio"] == pytest.approx(1.21, abs=0.005)


def test_ops_beside_a_copy(tmp_path):
    out = tmp_path / "ops.json"
    assert ops_gpu.main(["--device", "cpu", "--tiny", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    row = found["rows"][0]
    # x is read and written in fp32, two branches and two next rows are bf16
    assert row["bytes"] == 2 * 4 * 32 * 32 * 16
    assert row["share"] == row["bytes_per_second"] / row["copy_of_as_many"]
    assert row["error"] <= 2**-7
    assert all(one["status"] == "passed" for one in found["rows"])


def test_every_op_is_right_or_counted(monkeypatch, capsys):
    assert every_op.main(["--device", "cpu"]) == 0
    monkeypatch.setattr(every_op, "difference", lambda *_: math.nan)
    assert every_op.main(["--device", "cpu"]) == 1


class FakeCuda:
    """Events on a clock that `call` moves by a second; a graph is the calls made while it is
    captured.
    """

    def __init__(self):
        self.now, self.recorded, self.capturing = 0.0, [], None

    def call(self):
        if self.capturing is not None:
            self.capturing.append(self.call)
        else:
            self.now += 0.001

    def install(self, monkeypatch):
        fake = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = fake.now

            def elapsed_time(self, other):
                return 1e3 * (other.at - self.at)

        class Graph:
            def __init__(self):
                self.calls = []

            def replay(self):
                for call in self.calls:
                    call()

        class Capture:
            def __init__(self, graph):
                self.graph = graph

            def __enter__(self):
                fake.capturing = self.graph.calls

            def __exit__(self, *_):
                fake.recorded.append(len(self.graph.calls))
                fake.capturing = None

        class Device:
            def __init__(self, _):
                pass

            __enter__ = __exit__ = lambda *_: None

        class Stream:
            def wait_stream(self, other):
                pass

        for name, value in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": Capture,
            "device": Device,
            "synchronize": lambda *_: None,
            "Stream": Stream,
            "current_stream": Stream,
            "stream": Device,
            "reset_peak_memory_stats": lambda: None,
            "max_memory_allocated": lambda: 7,
            "memory_reserved": lambda: 8,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.fixture
def as_if_on_a_gpu(monkeypatch, nets):
    """The benchmarks take their ways for a GPU, with CUDA's own calls faked."""
    FakeCuda().install(monkeypatch)
    monkeypatch.setattr(nets, "gpu", True)
    real = fg.Sampler
    monkeypatch.setattr(fg, "Sampler", lambda *a, graph=False, **k: real(*a, **k))
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)
    return nets


def test_every_way_on_a_gpu(as_if_on_a_gpu):
    nets = as_if_on_a_gpu
    settings = (networks.TINY["DiT-S/2"], nets.get("DiT-S/2"), 1, ways.METHODS["CFG"], 2)
    setting = ways.Setting(*settings, CPU, nets.dtype)
    setting.gpu = True
    row = loops.measure(setting, True, "DiT-S/2", "CFG")
    assert "status" not in row
    every = {"plain", "eager", "graph", "forwards", "reduce-overhead", "graph, compiled"}
    assert set(row["seconds"]) == every
    assert set(row["difference"]) == every - {"plain", "forwards"}
    assert len(row["targets"]) == 3


def test_the_poster_on_a_gpu(as_if_on_a_gpu, monkeypatch):
    for name, published in poster.PUBLISHED.items():  # fewer steps
        monkeypatch.setitem(poster.PUBLISHED, name, replace(published, steps=4))
    row = poster.seconds_row(as_if_on_a_gpu, "SD", "CFG", None)
    assert set(row["seconds"]) == {"eager", "graph"}
    assert row["published_over_ours"] == 32.63 / min(row["seconds"].values())
    row = poster.seconds_row(as_if_on_a_gpu, "DiT-XL/2", "REG", None)
    assert [one["limit"] for one in row["targets"]] == [4.5]
    memory = poster.memory_row(as_if_on_a_gpu, "DiT-XL/2")
    assert memory["bytes"]["CFG"] == {"eager": 7.0, "graph": 8.0}


def test_a_kernel_is_timed_by_replays(monkeypatch):
    fake = FakeCuda()
    fake.install(monkeypatch)
    watch = timing.stopwatch([fake.call, fake.call], torch.device("cuda"), target=0.02)
    assert fake.recorded == [20]  # twice 10, as both together took 2 ms
    assert watch() == pytest.approx(0.001)
    timing.stopwatch([fake.call], torch.device("cuda"), target=10.0)
    assert fake.recorded[-1] == timing.MOST_LAUNCHES


def test_median_and_spread():
    found = timing.summary([4.0, 1.0, 2.0, 3.0, 100.0])
    assert (found.seconds, found.rounds) == (3.0, 5)
    assert found.spread == pytest.approx((4.0 - 2.0) / 2 / 3.0)
    assert timing.summary([2.0]) == timing.Timing(2.0, 0.0, 1)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_rows_that_no_longer_fit_are_not_run(tmp_path):
    clock, path = Clock(), tmp_path / "rows.json"
    saved = []

    def job(name, seconds, error=None):
        def run():
            saved.append([r["name"] for r in json.loads(path.read_text())["rows"]])
            clock.now += seconds
            if error:
                raise error
            return {"line": "fine"}

        return Job(name, run, seconds)

    report = Report(path, {"a": 1})
    report.save()
    jobs = [
        job("one", 4.0),
        job("wrong", 1.0, ValueError("no")),
        job("long", 9.0),
        job("short", 2.0),
        job("odd", 1.0, Skipped("nothing to see")),
    ]
    assert not report.run(jobs, Deadline(10.0, clock))
    found = {row["name"]: row["status"] for row in report.rows}
    assert found == {
        "one": "passed",
        "wrong": "failed",
        "long": "not run",
        "short": "passed",
        "odd": "skipped",
    }
    assert saved == [[], ["one"], ["one", "wrong", "long"], ["one", "wrong", "long", "short"]]
    assert "ValueError: no" in report.rows[1]["reason"]

    again = Report(path, {"a": 1})
    done = again.resume()
    assert done == {"one", "wrong", "short", "odd"}
    assert again.run([job("one", 99.0), job("long", 9.0)], Deadline(10.0, clock), done)
    assert [row["name"] for row in again.rows] == ["one", "wrong", "short", "odd", "long"]


def test_a_row_that_ended_its_process_is_not_tried_again(tmp_path):
    path = tmp_path / "rows.json"

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Report(path).run([Job("one", dict), Job("two", killed), Job("three", dict)], Deadline(9.0))
    assert gpu.unfinished(path)
    again = Report(path)
    assert again.run([Job("two", killed), Job("three", dict)], Deadline(9.0), again.resume())
    assert {row["name"]: row["status"] for row in again.rows} == {
        "one": "passed",
        "two": "failed",
        "three": "passed",
    }
    assert not gpu.unfinished(path)


def test_nothing_runs_after_the_device_failed():
    def run():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    report = Report(None)
    assert not report.run([Job("bad", run), Job("next", dict)], Deadline(10.0))
    assert [row["status"] for row in report.rows] == ["failed", "not run"]


def step(name, code, limit=20.0, **options):
    return steps.Step(name, [sys.executable, "-c", code], limit, **options)


def test_steps_fail_alone_and_end_in_time(tmp_path):
    alive, outlived = str(tmp_path / "alive"), str(tmp_path / "outlived")
    inner = f"import time; open({alive!r}, 'w'); time.sleep(3); open({outlived!r}, 'w')"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    found = {}
    began = time.monotonic()
    steps.run_group(
        [
            step(
                "good",
                "import os; print('x' * 9000, os.environ['WORD'])",
                environment={"WORD": "!"},
            ),
            step("bad", "raise SystemExit(3)"),
            step("late", child, limit=1.5),
            step("odd", "print('Device not supported'); exit(9)", skips=[("not supp", "cannot")]),
            step("told", "import sys; print(sys.argv)", missing="there is no GPU"),
            steps.Step(
                "time", [sys.executable, "-c", "import sys; print(sys.argv[1])", "{seconds}"], 20
            ),
        ],
        Deadline(60.0),
        tmp_path,
        lambda one: found.update({one["name"]: one}),
    )
    assert time.monotonic() - began < 15.0
    assert {name: one["status"] for name, one in found.items()} == {
        "good": "passed",
        "bad": "failed",
        "late": "failed",
        "odd": "skipped",
        "told": "skipped",
        "time": "passed",
    }
    assert found["good"]["tail"] == ("x" * 9000 + " !\n")[-steps.TAIL :]
    assert found["bad"]["reason"] == "exit status 3"
    assert found["late"]["reason"] == "took longer than its 2 s"
    assert found["odd"]["reason"] == "cannot"
    assert found["time"]["tail"] == "12\n"  # 20 s less a margin to write results in
    assert (tmp_path / "alive").exists()
    time.sleep(max(0.0, 4.5 - (time.monotonic() - began)))
    assert not (tmp_path / "outlived").exists()  # what the late step started ended with it


def test_no_step_starts_without_time(tmp_path):
    found = []
    steps.run_group([step("one", "")], Deadline(steps.LEAST - 1), tmp_path, found.append)
    assert [one["status"] for one in found] == ["not run"]


def test_the_file_is_whole_after_every_step(tmp_path, monkeypatch):
    out, seen = tmp_path / "gpu.json", []
    part = tmp_path / "ops.json"
    rows = [{"name": "r", "status": "passed", "targets": [record.target("t", 0.8, 0.9, True)]}]
    write = f"open({str(part)!r}, 'w').write({json.dumps(json.dumps({'rows': rows}))})"
    groups = [[step("build", "")], [step("ops", write, part=part)], [step("loops", "exit(1)")]]
    monkeypatch.setattr(gpu, "groups", lambda *_: groups)
    real = gpu.write_json

    def write_json(path, content):
        real(path, content)
        seen.append([one["status"] for one in json.loads(out.read_text())["steps"]])

    monkeypatch.setattr(gpu, "write_json", write_json)
    monkeypatch.setattr(gpu.Results, "collect", collect_from(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(out), "--commit", "abc"]) == 1
    assert seen[:4] == [[], ["passed"], ["passed"] * 2, ["passed", "passed", "failed"]]
    found = json.loads(out.read_text())
    assert found["commit"] == "abc"
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["fastguide"] == fg.__version__
    assert found["ops"]["rows"] == rows
    assert [(one["row"], one["met"]) for one in found["targets"]] == [("r", False)]


def collect_from(folder):
    """`Results.collect` with its parts in another folder."""
    real = gpu.Results.collect

    def collect(self):
        self.parts = folder
        real(self)

    return collect


def test_a_step_end_to_end(tmp_path):
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--tiny", "--only", "ops,memcheck", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    status = {one["name"]: one["status"] for one in found["steps"]}
    assert status == {"ops": "passed", "memcheck": "skipped"}
    assert found["ops"]["tiny"] is True
    assert all(row["status"] == "passed" for row in found["ops"]["rows"])


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "there is no GPU" in capsys.readouterr().err


def test_the_steps_fit_in_nine_minutes(tmp_path):
    """The groups before the benchmarks leave them a third of the time."""
    groups = gpu.groups(CPU, False, tmp_path, tmp_path / "tuned.json")
    first = [max(one.limit for one in group) for group in groups[:3]]
    assert gpu.TOTAL <= 9 * 60
    assert sum(first) <= gpu.TOTAL * 0.8
    assert [group[0].name for group in groups[2:6]] == ["tune", "ops", "loops", "poster"]


def test_gpu_tests_are_dealt_and_counted():
    class Item:
        def __init__(self, file, name):
            self.path, self.name = Path(file), name

    class Config:
        class hook:
            pytest_deselected = staticmethod(lambda items: None)

    items = [Item("test_gpu.py", f"test_{i}[x]") for i in range(5)]
    items += [Item("test_norm.py", "test_a[cuda-1]"), Item("test_norm.py", "test_cuda[cpu]")]
    dealt = []
    for index in range(2):
        mine = list(items)
        gpu_tests.Share(index, 2).pytest_collection_modifyitems(Config, mine)
        dealt += mine
    assert {one.name for one in dealt} == {*(f"test_{i}[x]" for i in range(5)), "test_a[cuda-1]"}
    assert len(dealt) == 6
    assert gpu_tests.total(["..\n3 passed, 1 failed in 2s", "x\n2 passed, 4 skipped in 1s"]) == {
        "passed": 5,
        "failed": 1,
        "skipped": 4,
    }
    assert ROOT / "tests" / "test_gpu.py" in gpu_tests.files(ROOT / "tests")


DEFAULT = {"BLOCK": 512, "num_warps": 4}


class FakeKernel:
    """A kernel of `step`'s name: what a launch would take is given by its settings."""

    def __init__(self, monkeypatch, candidates, seconds, sizes=1, noise=0.0):
        self.seconds, self.noise, self.number = seconds, noise, 0
        cases = [[self.maker(size) for size in range(sizes)]]
        entry = tune.Kernel(candidates, cases, self.maker(0))
        monkeypatch.setitem(tune.KERNELS, "step", entry)
        monkeypatch.setitem(tuning.DEFAULTS, "step", DEFAULT)

    def maker(self, size):
        def make(device):
            def launch():
                settings = tuning.lookup("step", device, branches=2, noise=False)
                self.last = self.seconds(settings["BLOCK"], size)
                return torch.ones(3)

            return OpCase(launch, launch, 1000, launch=launch)

        return make

    def clock(self, cases, device):
        def watch():
            cases[0].launch()
            self.number += 1
            return self.last * (1.0 + self.noise * (-1) ** self.number)

        return watch


def tuned_of(path, **options):
    """The tuned settings of the fake kernel, and the row."""
    report = Report(None)
    fine = tune.tune(["step"], CPU, path, report, Deadline(100.0), **options)
    assert fine, report.rows
    return tuning.read_tuned(path), report.rows[0]


def accept(*_):
    return None


BLOCKS = [{"BLOCK": 256}, {"BLOCK": 1024}, {"BLOCK": 2048}]


def test_the_fastest_candidate_becomes_the_entry(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    old = {"step": {"another GPU": {"branches=9,noise=0": {"BLOCK": 64, "num_warps": 1}}}}
    path.write_text(json.dumps(old))
    times = {256: 1.3, 512: 1.0, 1024: 0.8, 2048: 0.9}
    fake = FakeKernel(monkeypatch, BLOCKS, lambda block, size: times[block])
    tuned, row = tuned_of(path, clock=fake.clock, rejected=accept)
    assert row["time_over_default"] == pytest.approx(0.8)
    assert tuned == {
        "step": {
            "another GPU": old["step"]["another GPU"],
            "cpu": {"branches=2,noise=0": {"BLOCK": 1024, "num_warps": 4}},
        }
    }
    text = path.read_text()
    tuned_of(path, clock=fake.clock, rejected=accept)
    assert path.read_text() == text

    monkeypatch.setattr(tuning, "TUNED", path)
    tuning._tuned.cache_clear()
    try:
        assert tuning.lookup("step", CPU, noise=False, branches=2)["BLOCK"] == 1024
        assert tuning.lookup("step", CPU, noise=True, branches=2) == DEFAULT
    finally:
        tuning._tuned.cache_clear()

    times[1024] = times[2048] = 1.1  # it is no longer faster: the entry goes
    tuned, row = tuned_of(path, clock=fake.clock, rejected=accept)
    assert not row["replaced"]
    assert tuned == old


def test_a_gain_within_the_noise_changes_nothing(tmp_path, monkeypatch):
    times = {512: 1.0, 1024: 0.95, 2048: 0.994}
    noisy = FakeKernel(monkeypatch, BLOCKS[1:], lambda block, size: times[block], noise=0.05)
    _, row = tuned_of(tmp_path / "a.json", clock=noisy.clock, rejected=accept, count=1)
    assert row["noise"] > 0.05  # the default's two figures differ by more than the gain
    assert not row["replaced"]
    quiet = FakeKernel(monkeypatch, BLOCKS[2:], lambda block, size: times[block])
    _, row = tuned_of(tmp_path / "b.json", clock=quiet.clock, rejected=accept)
    assert not row["replaced"]  # 0.6 % is not worth an entry


def test_what_is_slower_at_one_size_is_not_taken(tmp_path, monkeypatch):
    times = {512: (1.0, 1.0), 1024: (0.5, 1.2), 256: (0.9, 0.95)}
    fake = FakeKernel(monkeypatch, BLOCKS[:2], lambda block, size: times[block][size], sizes=2)
    _, row = tuned_of(tmp_path / "tuned.json", clock=fake.clock, rejected=accept)
    assert row["settings"]["BLOCK"] == 256


def test_a_rejected_candidate_is_not_timed(tmp_path, monkeypatch):
    times = {256: 0.9, 512: 1.0, 1024: 0.5}
    fake = FakeKernel(monkeypatch, BLOCKS[:2], lambda block, size: times[block])

    def rejected(name, settings, case, want):
        return "spills 4" if settings["BLOCK"] == 1024 else None

    _, row = tuned_of(tmp_path / "tuned.json", clock=fake.clock, rejected=rejected)
    assert row["settings"]["BLOCK"] == 256
    assert row["rejected"] == {"BLOCK 1024": "spills 4"}
    assert "BLOCK 1024" not in row["quick"]


@pytest.mark.parametrize(
    ("spills", "scale", "reason"),
    [(0, 1.0, None), (12, 1.0, "spills 12"), (0, 2.0, "differs"), (None, 1.0, "does not say")],
)
def test_why_a_candidate_cannot_be_used(spills, scale, reason, monkeypatch):
    pytest.importorskip("triton")

    class Compiled:
        n_spills = spills

    class Jit:
        def run(self, *arguments, **settings):
            return Compiled()

    monkeypatch.setattr("triton.runtime.jit.JITFunction", Jit)

    def launch():
        Jit().run()
        return scale * torch.ones(3)

    case = OpCase(launch, launch, 1, launch=launch)
    found = tune.why_not("step", DEFAULT, case, torch.ones(3))
    assert found is reason is None or reason in found
    assert "step" not in tuning._trials


def test_every_kernel_is_tuned():
    assert set(tune.KERNELS) == set(tuning.DEFAULTS), (
        "add an entry to KERNELS of bench/gpu/tune_kernels.py"
    )
    for name, kernel in tune.KERNELS.items():
        for candidate in kernel.candidates:
            assert set(candidate) <= set(tuning.DEFAULTS[name])
            assert any(tuning.DEFAULTS[name][key] != value for key, value in candidate.items())


SETTINGS = {"BLOCK": 256, "num_warps": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"tuned.json is \[\], but it should be an object"),
        ({"stop": {}}, "has the kernel 'stop', but should have some of blur, step"),
        ({"step": {"GPU": {"a=1": {**SETTINGS, "FAST": 1}}}}, r"GPU, a=1 has .*'FAST'"),
        ({"step": {"GPU": {"a=1": {"BLOCK": 256}}}}, r"has \['BLOCK'\], but should have"),
        ({"step": {"GPU": {"a=1": {**SETTINGS, "BLOCK": "256"}}}}, "BLOCK is '256'"),
        ({"step": {"GPU": {"a=1": {**SETTINGS, "BLOCK": 0}}}}, "BLOCK is 0"),
        ({"step": {"GPU": {"a=1": 256}}}, "a=1 is 256, but it should be an object"),
    ],
)
def test_a_broken_tuned_file_is_an_error_that_says_where(text, message, tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    monkeypatch.setattr(tuning, "TUNED", path)
    tuning._tuned.cache_clear()
    try:
        with pytest.raises(ValueError, match=message):
            tuning.lookup("step", CPU, branches=2, noise=False)
    finally:
        tuning._tuned.cache_clear()


def test_the_committed_tuned_file_is_right():
    tuning.read_tuned(tuning.TUNED)


@pytest.mark.filterwarnings("ignore")
def test_tuned_settings_are_packaged(tmp_path, monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "fastguide").symlink_to(ROOT / "fastguide")
    (tmp_path / "README.md").touch()
    (tmp_path / "LICENSE").touch()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").touch()
    (tmp_path / "kernels/tuned.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    built = setuptools.Distribution({"script_name": "setup.py"})
    built.parse_config_files(["pyproject.toml"])
    command = built.get_command_obj("build_py")
    command.ensure_finalized()
    found = {package: files for package, _, _, files in command.data_files}
    assert found["fastguide.kernels"] == ["tuned.json"]
