"""Which rows run through which stages together: a pass without work done twice.

A perturbed block of rows equals its source up to the first stage that treats it differently, and
all conditions equal each other up to the first stage that reads one; there a block begins, as a
copy of its source's state. A network in one stage that rows can enter within (staging by modules)
runs its clean blocks first, and those that leave them at one layer together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastguide.engine.pattern import Nag
from fastguide.guidance.base import Branch
from fastguide.staging.contract import TIME, Segment, Stage, is_staged
from fastguide.staging.kept import Cut
from fastguide.staging.perturbation import NoisyTime, Shuffled, Skipped

RowMode = Literal["batched", "sequential", "beside"]  # how rows and networks share the device


@dataclass(frozen=True)
class Step:
    """One stage for one batch.

    Args:
        forks: the source of each block that begins before the stage.
        kept: the blocks that the stage runs on, where it leaves some out; None for all.
        blocks: how many there are after the forks.
        segments, observe: as in `fastguide.staging.contract.Routing`, counted among the kept.
        saved: whether another batch goes on from the state before this stage.
        cuts: where later batches leave this one within the stage.
        resumes: the blocks of the source batch that this one goes on from within the stage.
        units: the stages, or layers of a stage that is the whole network, that it runs.
    """

    stage: Stage
    forks: tuple[int, ...]
    kept: tuple[int, ...] | None
    blocks: int
    segments: Mapping[str, tuple[Segment, ...]]
    observe: Mapping[str, tuple[tuple[int, Hashable], ...]]
    saved: bool = False
    cuts: tuple[Cut, ...] = ()
    resumes: tuple[int, ...] | None = None
    units: int = 1


@dataclass(frozen=True)
class Batch:
    """Blocks of rows that run together, from the input or from another batch's state.

    Args:
        rows: the blocks in order, the ones that begin later last.
        source: the batch that this one goes on from, or None: from its state before stage `start`,
            or within the stage where the step `resumes`.
    """

    rows: tuple[Branch, ...]
    source: int | None
    start: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Program:
    """All batches of a pass; each input holds `inputs` copies of x.

    With `graph` the first batch, which holds the positive rows, can be differentiated; with
    `checkpoint` the activations of its stages are computed again for that.
    """

    batches: tuple[Batch, ...]
    inputs: int
    graph: bool = False
    checkpoint: bool = False

    @property
    def draws(self) -> bool:
        """Whether a layer draws something."""
        return any(
            isinstance(segment.how, (NoisyTime, Shuffled))
            for batch in self.batches
            for step in batch.steps
            for segments in step.segments.values()
            for segment in segments
        )

    @property
    def stage_rows(self) -> int:
        """Blocks times stages: what is computed, where a plain pass computes rows times stages."""
        return sum(
            step.units * (step.blocks if step.kept is None else len(step.kept))
            for batch in self.batches
            for step in batch.steps
        )

    @property
    def stages(self) -> int:
        """How many a plain row runs through."""
        return max(batch.start + sum(step.units for step in batch.steps) for batch in self.batches)


def make_program(
    rows: Sequence[Branch],
    net: Any,
    nag: Nag | None = None,
    observe: Sequence[tuple[str, Branch]] = (),
    mode: RowMode = "batched",
    graph: bool = False,
    checkpoint: bool = False,
) -> Program:
    """Lay out the blocks `rows`, the positive one first, for `net`.

    Args:
        net: staged, or any callable `net(x, t, cond)`.
        observe: layers and blocks whose attention's column sums are wanted.
        mode: all rows in one batch, or for "sequential" one batch for each block (not with NAG,
            whose rows meet).
        graph: whether the positive rows are to be differentiated; they are a batch of their own
            then (not with NAG).
        checkpoint: see `Program`.
    """
    stages = tuple(net.stages) if is_staged(net) else (_whole(net),)
    layout = _Layout(stages, nag, tuple(observe))
    if stages[0].enters:
        alone = (mode == "sequential" or graph) and nag is None
        batches = layout.entering(rows, alone)
        return Program(batches, len(batches[0].rows), graph, checkpoint)
    begins = {block: layout.begin(block, rows) for block in rows}
    ordered = sorted(rows, key=lambda block: (begins[block][0], block != block.source))
    if (mode == "sequential" or graph) and nag is None:
        return Program(layout.sequential(ordered, begins), 1, graph, checkpoint)
    return replace(layout.batched(ordered, begins), graph=graph, checkpoint=checkpoint)


def _whole(net: Any) -> Stage:
    return Stage("network", lambda state, cond, _: net(*state, cond), cond=True)


@dataclass(frozen=True)
class _Layout:
    stages: tuple[Stage, ...]
    nag: Nag | None
    observe: tuple[tuple[str, Branch], ...]

    @property
    def stem(self) -> int:
        """How many stages run before the first that reads the condition."""
        return next(i for i, stage in enumerate(self.stages) if stage.cond)

    def begin(self, block: Branch, rows: Sequence[Branch]) -> tuple[int, Branch]:
        """The first stage that is the block's own, and the block whose state it begins with."""
        if block == rows[0]:
            return -1, block
        if block.moved:
            return 0, block
        first = next(
            (i for i, s in enumerate(self.stages) if set(s.layers) & set(block.layers)), self.stem
        )
        if block.source == rows[0] or (block.source in rows and first > self.stem):
            return first, block.source  # which has begun before
        return min(first, self.stem), rows[0]

    def batched(
        self, rows: Sequence[Branch], begins: Mapping[Branch, tuple[int, Branch]]
    ) -> Program:
        """All blocks in one batch."""
        inputs = sum(begins[block][0] <= 0 for block in rows)
        steps, blocks = [], inputs
        for index in range(len(self.stages)):
            new = [block for block in rows[blocks:] if begins[block][0] == index]
            forks = tuple(rows.index(begins[block][1]) for block in new)
            blocks += len(new)
            steps.append(self.step(index, rows[:blocks], forks, begins))
        return Program((Batch(tuple(rows), None, 0, tuple(steps)),), inputs)

    def sequential(
        self, rows: Sequence[Branch], begins: Mapping[Branch, tuple[int, Branch]]
    ) -> tuple[Batch, ...]:
        """One batch for each block."""
        batches = []
        for number, block in enumerate(rows):
            start = max(begins[block][0], 0)
            source = rows.index(begins[block][1]) if start > 0 else None
            wanted = {begins[b][0] for b in rows[number + 1 :] if begins[b][1] == block}
            steps = (
                self.step(index, [block], (), begins, index in wanted)
                for index in range(start, len(self.stages))
            )
            batches.append(Batch((block,), source, start, tuple(steps)))
        return tuple(batches)

    def entering(self, rows: Sequence[Branch], alone: bool) -> tuple[Batch, ...]:
        """Clean blocks, then those that leave them within the stage, by the layer where they do;
        with `alone` each block by itself. NAG's rows meet in every layer: they stay together.
        """
        names = self.stages[0].layers
        late = [
            block
            for block in rows
            if block.layers and TIME not in block.layers and block.source in rows
        ]
        late = [] if self.nag is not None else late
        groups = [[block for block in rows if block not in late]]
        by_layer: dict[int, list[Branch]] = {}
        for block in late:
            first = min(names.index(str(name)) for name in block.layers)
            by_layer.setdefault(first, []).append(block)
        firsts = [0, *by_layer]
        groups += by_layer.values()
        if alone:
            firsts = [first for first, group in zip(firsts, groups, strict=True) for _ in group]
            groups = [[block] for group in groups for block in group]
        where = {
            block: (number, index)
            for number, group in enumerate(groups)
            for index, block in enumerate(group)
        }
        begun = {block: (0, block) for block in rows}
        cuts: dict[int, list[Cut]] = {}
        entered: list[tuple[int, list[Branch], int | None, tuple[int, ...] | None]] = []
        for first, group in zip(firsts, groups, strict=True):
            if group[0] not in late:
                entered.append((first, group, None, None))
                continue
            places = [where[block.source] for block in group]
            resumes = tuple(index for _, index in places)
            source = places[0][0]
            layers = tuple(str(name) for block in group for name in block.layers)
            cuts.setdefault(source, []).append(Cut(layers, tuple(sorted(set(resumes)))))
            entered.append((first, group, source, resumes))
        return tuple(
            Batch(
                tuple(group),
                source,
                0,
                (
                    replace(
                        self.step(0, group, (), begun),
                        cuts=tuple(cuts.get(number, ())),
                        resumes=resumes,
                        units=len(names) - first,
                    ),
                ),
            )
            for number, (first, group, source, resumes) in enumerate(entered)
        )

    def step(
        self,
        index: int,
        rows: Sequence[Branch],
        forks: tuple[int, ...],
        begins: Mapping[Branch, tuple[int, Branch]],
        saved: bool = False,
    ) -> Step:
        """One stage for the blocks `rows`."""
        stage = self.stages[index]
        kept = [i for i, block in enumerate(rows) if not self.skips(block, stage)]
        treated = [rows[i] for i in kept]
        segments, observe = {}, {}
        for layer in stage.layers:
            wanted = tuple(
                (treated.index(standing), (layer, block))
                for name, block in self.observe
                if name == layer and (standing := _standing(block, index, begins)) in treated
            )
            found = self.segments(stage, layer, treated)
            if wanted:
                observe[layer] = wanted
            if wanted or found != (Segment(0, len(treated)),):
                segments[layer] = found
        whole = len(kept) == len(rows)
        return Step(
            stage, forks, None if whole else tuple(kept), len(rows), segments, observe, saved
        )

    def skips(self, block: Branch, stage: Stage) -> bool:
        """Whether the block leaves the stage out."""
        if stage.enters:
            return False
        skipped = isinstance(block.how, Skipped) and bool(set(stage.layers) & set(block.layers))
        if skipped and not stage.skippable:
            raise ValueError(
                f"layers has {', '.join(stage.layers)}, which this network cannot leave out"
            )
        return skipped

    def segments(self, stage: Stage, layer: str, rows: Sequence[Branch]) -> tuple[Segment, ...]:
        """All blocks in order, neighbours that are treated alike together."""
        found: list[Segment] = []
        for i, block in enumerate(rows):
            how = block.how if layer in block.layers else None
            if isinstance(how, NoisyTime) and not stage.timed:
                raise ValueError(f"layers has {layer!r}, but it reads no time embedding")
            against = None
            if self.nag is not None and layer in self.nag.layers and block.cond == "cond":
                negative = Branch("negative", degraded=block.degraded)
                # before a condition is read all rows are equal, and NAG is the identity
                against = rows.index(negative) if negative in rows else None
            if found and found[-1][2:] == (how, against):
                found[-1] = found[-1]._replace(stop=i + 1)
            else:
                found.append(Segment(i, i + 1, how, against))
        return tuple(found)


def _standing(block: Branch, index: int, begins: Mapping[Branch, tuple[int, Branch]]) -> Branch:
    """The block whose rows are those of `block` at a stage: itself, once it has begun."""
    while begins[block][0] > index:
        block = begins[block][1]
    return block
