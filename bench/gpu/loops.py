"""Whole sampling runs of fastguide beside what else there is, on networks of published sizes.

    python bench/gpu/loops.py [--out FILE] [--seconds 150] [--resume] [--device cpu --tiny]
    python bench/gpu/loops.py --warm          compile what needs it, so that a later run need not

| way | what it is |
|---|---|
| eager, graph | `fastguide.Sampler`, without and with graph=True |
| graph, compiled | the same over `torch.compile(net)` |
| forwards | the network's forwards alone, replayed from a graph |
| plain | `plain_loops.py` |
| reduce-overhead | that, with `torch.compile(net, mode="reduce-overhead")` |
| diffusers | its own pipeline, where it is installed and has the method |

In every round each way has its turn. All start from the same noise, and results are compared first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from networks import NETWORKS, TINY, Network, build
from op_cases import difference
from record import Deadline, Job, Report, options, target
from timing import in_turns, summary
from ways import METHODS, Setting, prepare

RATE = 3e14  # operations a second, for estimates of the time
# of the results, after all steps, relative to the largest element. tests/bench/test_bench_gpu.py
# holds small networks to the first; the second is what rounding to 8 bits may do to deep ones
AGREE = {torch.float32: 1e-4, torch.bfloat16: 0.25}
COMPILED = {("DiT-S/2", 1), ("DiT-S/2", 8), ("DiT-XL/2", 1), ("DiT-XL/2", 8)}  # with CFG


def rounds_for(seconds: float) -> int:
    """Many where a round is short: about 2 s in all, 3 to 15."""
    return max(3, min(15, round(2.0 / max(seconds, 1e-6))))


def measure(setting: Setting, compiled: bool, name: str, method: str) -> dict[str, Any]:
    """The row of one setting.

    Raises:
        AssertionError: results differ.
    """
    prepare(setting, compiled, name, method)
    errors = {
        way: difference(result, setting.results["plain"])
        for way, result in setting.results.items()
        if way not in ("plain", "forwards", "diffusers")
    }
    limit = AGREE[setting.dtype]
    wrong = {way: error for way, error in errors.items() if not error <= limit}
    if wrong:
        raise AssertionError(f"results differ from the plain loop's by {wrong}, more than {limit}")
    once = in_turns(setting.ways, setting.device, 1)
    total = sum(seconds[0] for seconds in once.values())
    found = in_turns(setting.ways, setting.device, rounds_for(total))
    timings = {way: summary(seconds) for way, seconds in found.items()}
    row: dict[str, Any] = {
        "network": name,
        "batch": setting.batch,
        "method": method,
        "steps": setting.steps,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "seconds": {way: timing.seconds for way, timing in timings.items()},
        "spread": {way: timing.spread for way, timing in timings.items()},
        "rounds": timings["plain"].rounds,
        "difference": errors,
        "missing": setting.missing,
    }
    if setting.failed:
        row |= {"status": "failed", "reason": str(setting.failed)}
    row["targets"] = targets(row)
    row["line"] = ", ".join(
        f"{way} {1e3 * timing.seconds / setting.steps:.2f}" for way, timing in timings.items()
    )
    row["line"] += " ms a step"
    return row


def targets(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What is aimed at for a row, where the ways are there."""
    seconds, found = row["seconds"], []
    ours = [seconds[way] for way in ("graph", "graph, compiled") if way in seconds]
    if not ours:
        return []
    if (row["network"], row["batch"]) == ("DiT-S/2", 1):
        value = seconds["plain"] / seconds["graph"] if "graph" in seconds else 0.0
        found.append(target("plain loop over graph", value, 2.0, True))
    if "forwards" in seconds and "graph" in seconds:
        value = seconds["graph"] / seconds["forwards"]
        found.append(target("graph over the forwards alone", value, 1.02))
    if "reduce-overhead" in seconds:
        value = min(ours) / seconds["reduce-overhead"]
        found.append(target("the faster of ours over reduce-overhead", value, 1.0))
    return found


def across(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Targets that compare rows: superconditioning with CFG in two passes, each at its fastest
    among eager and graph.
    """
    found = {(r["network"], r["batch"], r.get("method")): r for r in rows if "seconds" in r}
    made = []
    for (network, batch, method), row in found.items():
        twin = found.get((network, batch, "CFG"))
        if method != "superconditioning" or twin is None:
            continue
        for way in ("eager", "graph"):
            if way in row["seconds"] and way in twin["seconds"]:
                value = row["seconds"][way] / row["steps"] * twin["steps"] / twin["seconds"][way]
                name = f"superconditioning over CFG, {network}, batch {batch}, {way}"
                made.append(target(name, value, 0.52))
    return made


def steps_of(network: Network, batch: int, rows: float) -> int:
    """50, or fewer where they would take more than about 0.3 s."""
    one = network.flops * batch * rows / RATE
    return max(5, min(50, int(0.3 / one)))


class Nets:
    """The networks, one at a time."""

    def __init__(self, networks: dict[str, Network], device: torch.device, dtype: torch.dtype):
        self.networks, self.device, self.dtype = networks, device, dtype
        self.gpu = device.type == "cuda"
        self.name: str | None = None
        self.net: Any = None

    def get(self, name: str) -> Any:
        """The network, built unless it is the last one again."""
        if name != self.name:
            self.net = None
            torch._dynamo.reset()
            if self.gpu:
                torch.cuda.empty_cache()
            self.net, self.name = build(self.networks[name], self.device, self.dtype), name
        return self.net


ORDER = [  # the most telling first
    *((name, batch, tuple(METHODS)) for name in ("DiT-S/2", "DiT-XL/2") for batch in (1, 8)),
    *(("SDXL", batch, ("CFG", "CFG and PAG", "REG")) for batch in (1,)),
    *(("ADM-64", batch, tuple(METHODS)) for batch in (1, 8)),
    ("SDXL", 1, ("superconditioning", "CFG and SEG")),
    ("SDXL", 8, ("CFG", "superconditioning", "CFG and PAG", "CFG and SEG", "REG")),
]


def jobs(nets: Nets, tiny: bool) -> list[Job]:
    """All rows."""
    found = []
    for name, batch, methods in ORDER:
        network = nets.networks[name]
        for method in methods:
            how = METHODS[method]
            steps = 3 if tiny else steps_of(network, batch, how.rows)
            compiled = method == "CFG" and (name, batch) in COMPILED

            def run(
                name: str = name,
                batch: int = batch,
                method: str = method,
                steps: int = steps,
                compiled: bool = compiled,
            ) -> dict[str, Any]:
                network = nets.networks[name]
                settings = (network, nets.get(name), batch, METHODS[method], steps)
                setting = Setting(*settings, nets.device, nets.dtype)
                try:
                    return measure(setting, compiled, name, method)
                finally:
                    setting.ways.clear()
                    if nets.gpu:
                        torch.cuda.empty_cache()

            seconds = steps * network.flops * batch * how.rows / RATE
            estimate = 2.0 + 20 * seconds + 25.0 * compiled  # 4 ways, 5 runs each
            found.append(Job(f"{name}, batch {batch}, {method}", run, 3.0 if tiny else estimate))
    return found


def warm(nets: Nets, deadline: Deadline) -> int:
    """Compile what the rows compile, once; torch keeps it on disk."""
    for name, batch in sorted(COMPILED):
        if deadline.left() == 0.0:
            break
        method = METHODS["CFG"]
        args = (nets.networks[name], nets.get(name), batch, method, 1)
        setting = Setting(*args, nets.device, nets.dtype)
        for call in (
            setting.loop(torch.compile(setting.net, dynamic=False, mode="reduce-overhead")),
            setting.sampler(torch.compile(setting.net, dynamic=False)),
        ):
            call()
        print(f"compiled {name}, batch {batch}", flush=True)
        torch._dynamo.reset()
    return 0


def main(arguments: list[str] | None = None) -> int:
    """1 where a row failed."""
    parser = options(__doc__, "small networks, to try the tool")
    parser.add_argument("--resume", action="store_true", help="run what did not fit the last time")
    parser.add_argument("--warm", action="store_true")
    given = parser.parse_args(arguments)
    deadline, device = Deadline(given.seconds), torch.device(given.device)
    dtype = torch.float32 if given.tiny else torch.bfloat16
    nets = Nets(TINY if given.tiny else NETWORKS, device, dtype)
    if given.warm:
        return warm(nets, deadline)
    report = Report(given.out, {"tiny": given.tiny})
    done = report.resume() if given.resume else set()
    fine = report.run(jobs(nets, given.tiny), deadline, done)
    report.content["across"] = across(report.rows)
    report.save()
    for one in report.content["across"]:
        print(f"{one['name']}: {one['value']:.3f}, target {one['limit']}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
