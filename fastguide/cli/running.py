"""The batches of a command, one after the other, with a bar on stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fastguide.cli.written import Folder
    from fastguide.sample import Sampler


@dataclass(frozen=True)
class Run:
    """What is sampled.

    Args:
        seeds, labels: of all images.
        negative: the negative class of all.
        batch: images at a time.
        quiet: without a bar.
    """

    sampler: Sampler
    seeds: Sequence[int]
    labels: Sequence[int] | None
    negative: int | None
    batch: int
    quiet: bool

    def __call__(self, todo: Sequence[int], folder: Folder | None) -> tuple[Tensor, float]:
        """The images of `todo` on the CPU, none where a folder has them written as they are made;
        and the seconds that it took.
        """
        import torch
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            *Progress.get_default_columns()[:3],
            MofNCompleteColumn(),
            TextColumn("evaluations"),
            TimeElapsedColumn(),
        )
        done: list[Tensor] = [torch.empty((0, *self.sampler.shape))]
        start, batches = time.perf_counter(), range(0, len(todo), self.batch)
        shown = Console(stderr=True)
        with Progress(*columns, console=shown, disable=self.quiet) as progress:
            total = len(batches) * self.sampler.plan.evaluations
            task = progress.add_task("sampling", total=total)
            for first in batches:
                part = todo[first : first + self.batch]
                seeds = [self.seeds[i] for i in part]
                images = self.sampler(
                    cond=None if self.labels is None else [self.labels[i] for i in part],
                    seeds=seeds,
                    negative=self.negative,
                    callback=lambda _: progress.advance(task),
                ).cpu()
                if folder is None:
                    done.append(images)
                else:
                    folder.write(seeds, images)
        return torch.cat(done), time.perf_counter() - start
