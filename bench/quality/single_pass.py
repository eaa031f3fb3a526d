"""Are single-pass guided samples as good as those of two passes? Judged by a classifier.

For every mode and scale: the share of samples that the classifier assigns to the requested class,
the Frechet distance of its features to those of the whole real test set, and the time of a sample.
Beside them: that distance for as many real train images, bf16 against fp32, and what a negative
condition does. Results are written after every row; `--resume` goes on where a run was stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import classifier
import study
import torch
import typer
from results import RESULTS, console, keep, kept, start
from single_pass_report import figures_of, plot, report
from study import CACHE, DATA, DTYPES, CacheOption, DataOption, DtypeOption, Judge

import fastguide as fg

MODES: dict[str, Callable[[float], fg.Guidance | None]] = {
    "unguided": lambda scale: None,
    "cfg": fg.CFG,
    "superconditioning": fg.Superconditioning,
}
PAIRS = (
    ("Shirt", "T-shirt/top"),
    ("Shirt", "Coat"),
    ("Pullover", "Coat"),
    ("Coat", "Pullover"),
    ("Sneaker", "Sandal"),
    ("Ankle boot", "Sneaker"),
)
PAIR_SCALE = 3.0
DRAWS = 20  # of real train images
NOTES = {
    "accuracy": "share of samples that the classifier assigns to the requested class",
    "frechet": "Frechet distance of the classifier's 128 features, samples to the whole test set",
    "frechet_error": "standard error of frechet: delete-one-group jackknife over "
    f"{classifier.GROUPS} class-balanced groups of seeds; frechet_left_out has its values",
    "reference": "frechet of disjoint, class-balanced random draws of train images without "
    "replacement, each as large as a row's samples: their mean, and as noise their sample standard "
    "deviation. The classifier has seen these images, not the test set",
    "difference_error": "jackknife over the same groups of the difference itself: the modes share "
    "seeds and labels",
}
OUT = RESULTS / "quality"


@dataclass(frozen=True)
class Bench:
    """What all rows share."""

    model: fg.Model
    judge: Judge
    samples: int
    steps: int
    seed: int

    def sampler(self, mode: str, scale: float, model: fg.Model | None = None) -> fg.Sampler:
        return fg.Sampler(model or self.model, MODES[mode](scale), steps=self.steps)

    def rows(self, samplers: Sequence[fg.Sampler], what: str) -> list[dict[str, Any]]:
        """The figures of each sampler."""
        labels = self.judge.labels(self.samples)
        drawn = study.draw(samplers, self.samples, labels, what, self.seed)
        return [
            {**self.judge.figures(pixels), "seconds_per_sample": seconds}
            for pixels, seconds in drawn
        ]


def measure_row(bench: Bench, mode: str, scale: float) -> dict[str, Any]:
    """One mode at one scale."""
    (figures,) = bench.rows([bench.sampler(mode, scale)], f"{mode} {scale:g}")
    row = {"mode": mode, "scale": scale, **figures}
    accuracy, distance, seconds = figures_of(row)
    console.print(f"{mode} {scale:g}: {accuracy} right, Frechet {distance}, {seconds} s / sample")
    return row


def measure_dtypes(bench: Bench, models: dict[str, fg.Model], scale: float) -> dict[str, Any]:
    """Single-pass in fp32 and in bf16: the same seeds, the batches in turns."""
    mode = "superconditioning"
    samplers = [bench.sampler(mode, scale, model) for model in models.values()]
    figures = bench.rows(samplers, f"{' and '.join(models)}, {mode} {scale:g}")
    rows = dict(zip(models, figures, strict=True))
    speedup = rows["fp32"]["seconds_per_sample"] / rows["bf16"]["seconds_per_sample"]
    return {"mode": mode, "scale": scale, **rows, "bf16_speedup": speedup}


def measure_pair(
    bench: Bench, mode: str, pair: tuple[str, str], negative: bool, samples: int
) -> dict[str, Any]:
    """Samples of the pair's first class, with its second as negative condition or with none."""
    wanted, other = (bench.model.class_names.index(name) for name in pair)
    what = f"{pair[0]}, negative {pair[1] if negative else 'null'}, {mode}"
    labels = torch.full((samples,), wanted)
    sampler = bench.sampler(mode, PAIR_SCALE)
    condition = other if negative else None
    ((pixels, _),) = study.draw([sampler], samples, labels, what, bench.seed, condition)
    found = bench.judge.classifier.judge(pixels)[1]
    return {
        "mode": mode,
        "class": pair[0],
        "negative": pair[1],
        "given": negative,
        "scale": PAIR_SCALE,
        "samples": samples,
        "as_class": float((found == wanted).double().mean()),
        "as_negative": float((found == other).double().mean()),
    }


def measure_reference(judge: Judge, samples: int) -> dict[str, Any]:
    """The distance of real train images to the test set, and how much it varies."""
    draws = classifier.balanced_draws(judge.train.labels, samples, DRAWS)
    if len(draws) < 2:
        raise ValueError(
            f"samples is {samples}, but the train images should give two disjoint draws of it"
        )
    shown = classifier.shown(draws, "train images")
    values = [judge.frechet(judge.features(judge.train.pixels[index])) for index in shown]
    return {
        "frechet": statistics.mean(values),
        "noise": statistics.stdev(values),
        "draws": values,
    }


def _key(pair: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(pair[name] for name in ("class", "negative", "mode", "given", "samples"))


def compare(rows: list[dict[str, Any]], noise: float) -> dict[str, Any]:
    """The best scale of each mode by Frechet distance, and single-pass minus two-pass."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["mode"] not in best or row["frechet"] < best[row["mode"]]["frechet"]:
            best[row["mode"]] = row
    result: dict[str, Any] = {
        mode: {key: row[key] for key in ("scale", "frechet", "frechet_error", "accuracy")}
        for mode, row in best.items()
    }
    if {"cfg", "superconditioning"} <= set(best):
        one, two = best["superconditioning"], best["cfg"]
        pairs = zip(one["frechet_left_out"], two["frechet_left_out"], strict=True)
        difference = one["frechet"] - two["frechet"]
        result["difference"] = difference
        result["difference_in_noise"] = difference / noise
        result["difference_error"] = classifier.jackknife_error([a - b for a, b in pairs])
    return result


def _choices(modes: str, scales: str) -> tuple[list[str], list[tuple[str, float]]]:
    """The modes, and the rows: (mode, scale), with scale 1 only as the unguided one."""
    names = list(dict.fromkeys(modes.split(",")))
    for name in names:
        if name not in MODES:
            raise ValueError(f"modes has {name!r}, but it should be of {', '.join(MODES)}")
    try:
        values = sorted({float(part) for part in scales.split(",")})
    except ValueError:
        raise ValueError(f"scales is {scales!r}, but it should be numbers as in 1,2,3") from None
    guided = [name for name in names if name != "unguided"]
    rows = [(name, scale) for name in guided for scale in values if scale != 1.0]
    return names, [("unguided", 1.0)] * ("unguided" in names) + rows


def _check(model: fg.Model, modes: Sequence[str], samples: int, pair_samples: int) -> None:
    size = len(model.class_names) * classifier.GROUPS
    if samples < size or samples % size:
        raise ValueError(
            f"samples is {samples}, but it should be a multiple of {size}: "
            f"{len(model.class_names)} classes x {classifier.GROUPS} jackknife groups"
        )
    if pair_samples < 0:
        raise ValueError(f"pair_samples is {pair_samples}, but it should be 0 or more")
    if "superconditioning" in modes and model.heads != 2:
        raise ValueError("modes has superconditioning, but the model has no second head")
    if pair_samples and "superconditioning" in modes and not model.negative:
        raise ValueError(
            f"pair_samples is {pair_samples}, but the model takes no negative condition; it should "
            "be 0"
        )
    missing = {name for pair in PAIRS for name in pair} - set(model.class_names)
    if pair_samples and missing:
        raise ValueError(
            f"pair_samples is {pair_samples}, but the model has no class {', '.join(missing)}; it "
            "should be 0"
        )


def main(
    model: Annotated[str, typer.Option(help="name of a bundled model, or a folder")] = "fashion",
    modes: Annotated[str, typer.Option(help="some of these")] = ",".join(MODES),
    scales: Annotated[str, typer.Option(help="1 is the unguided one")] = "1,1.5,2,3,4,5",
    samples: Annotated[int, typer.Option(help="of a row; a multiple of 100")] = 2000,
    steps: int = 25,
    dtype: DtypeOption = "fp32",
    pair_samples: Annotated[int, typer.Option(help="of a negative pair; 0 for none")] = 300,
    seed_offset: Annotated[int, typer.Option(help="the first seed")] = 0,
    data: DataOption = DATA,
    cache: CacheOption = CACHE,
    out: Annotated[Path, typer.Option(help="results, less .json and .png")] = OUT,
    resume: Annotated[bool, typer.Option(help="keep the rows that are there")] = False,
) -> None:
    """Measure, write, plot and print; see the file's first lines."""
    chosen, wanted = _choices(modes, scales)
    loaded = study.load_model(model, dtype)
    _check(loaded, chosen, samples, pair_samples)
    judge = study.make_judge(data, cache, loaded)
    bench = Bench(loaded, judge, samples, steps, seed_offset)
    path = out.with_name(f"{out.name}.json")
    arguments = {
        "modes": modes,
        "scales": scales,
        "samples": samples,
        "steps": steps,
        "dtype": dtype,
        "pair_samples": pair_samples,
        "seed_offset": seed_offset,
        "data": data.name,
    }
    run = study.run_of(arguments, model, loaded, judge)
    results = (kept(path, run, study.in_common) if resume else None) or run
    results.setdefault("notes", NOTES)

    if "reference" not in results:
        results["reference"] = measure_reference(judge, samples)
        keep(path, results)
    rows: list[dict[str, Any]] = results.setdefault("rows", [])
    for mode, scale in wanted:
        if (mode, scale) not in {(row["mode"], row["scale"]) for row in rows}:
            rows.append(measure_row(bench, mode, scale))
            rows.sort(key=lambda row: (list(MODES).index(row["mode"]), row["scale"]))
            keep(path, results)
    results["best"] = best = compare(rows, results["reference"]["noise"])
    if "superconditioning" in chosen and "superconditioning" in best:
        scale = best["superconditioning"]["scale"]
        if results.get("dtypes", {}).get("scale") != scale:
            models = {name: fg.load(model, dtype=kind) for name, kind in DTYPES.items()}
            results["dtypes"] = measure_dtypes(bench, models, scale)
            keep(path, results)
    pairs: list[dict[str, Any]] = results.setdefault("pairs", [])
    for pair in PAIRS if pair_samples else ():
        for mode in chosen:
            for given in (False, True):
                key = (*pair, mode, given, pair_samples)
                if mode != "unguided" and key not in {_key(row) for row in pairs}:
                    pairs.append(measure_pair(bench, mode, pair, given, pair_samples))
                    keep(path, results)
    keep(path, results)
    plot(results, out.with_name(f"{out.name}.png"))
    report(results, console)


if __name__ == "__main__":
    start(main)
