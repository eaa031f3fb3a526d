"""The time and the memory that REG's poster (Gao et al. 2025) gives for CFG and REG, and ours.

    python bench/gpu/poster.py [--out FILE] [--seconds 120] [--resume] [--device cpu --tiny]

Seconds for one batch: DiT-XL/2 at 256 x 256, Stable Diffusion 1.4 at 512, SDXL at 1024; memory of
one sample. Ours: networks of the same size with random weights in bf16, and exact REG, the network
alone. The poster names neither its device nor its precision, nor the steps of its text-to-image
rows (50 here, as usual), and its figures may hold text encoders and decoders: the two columns are
not of one machine.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from loops import RATE, Nets
from memory import peak_bytes, weight_bytes
from networks import NETWORKS, TINY, conditions, model_of
from record import Deadline, Job, Report, is_fatal, options, target
from timing import in_turns

import fastguide as fg

SCALE = 4.0
MEMORY_STEPS = 3  # the peak of a run is that of one step
GIB = 2**30
GUIDANCES: dict[str, Callable[[], fg.Guidance]] = {
    "CFG": lambda: fg.CFG(SCALE),
    "REG": lambda: fg.REG(fg.CFG(SCALE)),
}
ROWS = {"CFG": 2, "REG": 4}  # of one sample; REG's backward pass counts as two, at most


@dataclass(frozen=True)
class Published:
    """A row of the poster.

    Args:
        solver, spacing, steps: what it samples with.
        batch: of its seconds.
        seconds: for one batch.
        gigabytes: at batch 1, where the poster gives them.
        goals: of ours, in seconds.
    """

    solver: Any
    spacing: Any
    steps: int
    batch: int
    seconds: dict[str, float]
    gigabytes: dict[str, float] | None = None
    goals: dict[str, float] | None = None


PUBLISHED = {
    "DiT-XL/2": Published(
        fg.ddpm(variance="learned"),
        fg.respaced,
        250,
        8,
        {"CFG": 59.79, "REG": 94.23},
        {"CFG": 4.15, "REG": 5.01},
        {"CFG": 3.0, "REG": 4.5},
    ),
    "SD": Published(
        fg.pndm(warmup=False), fg.leading(offset=1), 50, 4, {"CFG": 32.63, "REG": 39.54}
    ),
    "SDXL": Published(fg.euler, fg.leading(offset=1), 50, 2, {"CFG": 47.48, "REG": 74.52}),
}


def sampler_of(
    nets: Nets, name: str, guidance: str, batch: int, steps: int, graph: bool
) -> Callable[[], Tensor]:
    """A run of the poster's solver on our network."""
    network, row = nets.networks[name], PUBLISHED[name]
    torch.manual_seed(0)
    cond, null = conditions(network, batch, nets.device, nets.dtype)
    model = model_of(network, nets.get(name), null)
    sampler = fg.Sampler(
        model, GUIDANCES[guidance](), row.solver, steps, row.spacing, dtype=nets.dtype, graph=graph
    )
    seeds = torch.arange(batch, device=nets.device)
    return lambda: sampler(cond, seeds)


def seconds_row(nets: Nets, name: str, guidance: str, steps: int | None) -> dict[str, Any]:
    """Seconds of whole runs, eager and from a graph; `steps` fewer ones, to try the tool."""
    published = PUBLISHED[name]
    measured = steps or published.steps
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    failed: dict[str, str] = {}
    for way in ("eager", "graph"):
        if way == "graph" and not nets.gpu:
            missing[way] = "needs a GPU"
            continue
        try:
            if way == "eager":  # what a first run sets up, a short one does
                sampler_of(nets, name, guidance, published.batch, MEMORY_STEPS, False)()
            call = sampler_of(nets, name, guidance, published.batch, measured, way == "graph")
            if way == "graph":
                call()
            found[way] = in_turns({way: call}, nets.device, 2 if way == "graph" else 1)[way]
            del call
        except torch.OutOfMemoryError as error:
            missing[way] = f"out of memory: {error}"
        except Exception as error:  # the other way is worth having all the same
            if is_fatal(error):
                raise
            failed[way] = f"{type(error).__name__}: {error}"
        if nets.gpu:
            torch.cuda.empty_cache()
    if not found:
        raise RuntimeError(f"no way ran: {missing | failed}")
    seconds = {way: statistics.median(values) for way, values in found.items()}
    best = min(seconds.values())
    theirs = published.seconds[guidance]
    row = {
        "network": name,
        "method": guidance,
        "batch": published.batch,
        "steps": published.steps,
        "steps_measured": measured,
        "seconds": seconds,
        "missing": missing,
        "published_seconds": theirs,
        "published_device": "not stated",
        "published_over_ours": theirs / best if measured == published.steps else None,
    }
    if failed:
        row |= {"status": "failed", "reason": str(failed)}
    if published.goals and measured == published.steps:
        row["targets"] = [target(f"seconds, {guidance}", best, published.goals[guidance])]
    ways = ", ".join(f"{way} {value:.2f} s" for way, value in seconds.items())
    row["line"] = f"{ways} for {measured} steps (published {theirs} s, another device)"
    return row


def peak(nets: Nets, name: str, guidance: str) -> dict[str, float]:
    """Bytes that are allocated at once during an eager run of one sample, weights and all."""
    call = sampler_of(nets, name, guidance, 1, MEMORY_STEPS, graph=False)
    if not nets.gpu:
        return {"eager": float(peak_bytes(call) + weight_bytes(nets.get(name)))}
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    found = {"eager": float(torch.cuda.max_memory_allocated())}
    del call
    torch.cuda.empty_cache()
    captured = sampler_of(nets, name, guidance, 1, MEMORY_STEPS, graph=True)
    captured()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    found["graph"] = float(torch.cuda.memory_reserved())  # what replays need stays reserved
    del captured
    torch.cuda.empty_cache()
    return found


def memory_row(nets: Nets, name: str) -> dict[str, Any]:
    """Peak memory of CFG and of REG at batch 1."""
    published = PUBLISHED[name].gigabytes
    found = {guidance: peak(nets, name, guidance) for guidance in GUIDANCES}
    ratios = {way: found["REG"][way] / found["CFG"][way] for way in found["CFG"]}
    row: dict[str, Any] = {
        "network": name,
        "batch": 1,
        "steps_measured": MEMORY_STEPS,
        "bytes": found,
        "weights": weight_bytes(nets.get(name)),
        "ratios": ratios,
        "published_gigabytes": published,
        "published_ratio": published["REG"] / published["CFG"] if published else None,
    }
    if name == "DiT-XL/2":
        row["targets"] = [target("memory, REG over CFG, eager", ratios["eager"], 1.25)]
    ours = " / ".join(f"{found[g]['eager'] / GIB:.2f}" for g in GUIDANCES)
    theirs = " / ".join(f"{published[g]}" for g in GUIDANCES) if published else "none"
    row["line"] = f"CFG / REG {ours} GiB, ratio {ratios['eager']:.2f}"
    row["line"] += f" (published, GB, another device: {theirs})"
    return row


def jobs(nets: Nets, tiny: bool) -> list[Job]:
    """All rows, the ones with goals first."""
    found = []
    for name, published in PUBLISHED.items():
        network = nets.networks[name]
        for guidance in GUIDANCES:
            flops = network.flops * published.batch * ROWS[guidance]
            estimate = 3.0 if tiny else 5.0 + 5 * published.steps * flops / RATE
            run = partial(seconds_row, nets, name, guidance, 3 if tiny else None)
            found.append(Job(f"seconds, {name}, {guidance}", run, estimate))
        run = partial(memory_row, nets, name)
        found.append(Job(f"memory, {name}", run, 5.0))
    return found


def main(arguments: list[str] | None = None) -> int:
    """1 where a row failed."""
    parser = options(__doc__, "small networks, to try the tool")
    parser.add_argument("--resume", action="store_true", help="run what did not fit the last time")
    given = parser.parse_args(arguments)
    deadline, device = Deadline(given.seconds), torch.device(given.device)
    nets = Nets(
        TINY if given.tiny else NETWORKS, device, torch.float32 if given.tiny else torch.bfloat16
    )
    note = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2]
    report = Report(given.out, {"tiny": given.tiny, "note": " ".join(note.split())})
    done = report.resume() if given.resume else set()
    return 0 if report.run(jobs(nets, given.tiny), deadline, done) else 1


if __name__ == "__main__":
    sys.exit(main())
