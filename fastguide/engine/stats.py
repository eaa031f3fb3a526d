"""What a sampler has done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastguide.engine.passes import Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan


@dataclass
class Stats:
    """Counts since the sampler was made.

    Args:
        runs: calls, and batches of requests.
        samples: of all runs, less what batches were filled up with: `padded`.
        evaluations: of the network, one for each pattern of rows.
        rows: network rows, of all samples.
        rows_skipped: those that schedules, intervals and held deltas left out.
        stage_rows: rows times stages that were computed.
        stage_rows_shared: those that rows have in common with others, and that ran once.
        captures, replays: of CUDA graphs, by all samplers that share them.
        fallbacks: runs that were eager as their capture did not fit.
    """

    runs: int = 0
    samples: int = 0
    padded: int = 0
    evaluations: int = 0
    rows: int = 0
    rows_skipped: int = 0
    stage_rows: int = 0
    stage_rows_shared: int = 0
    captures: int = 0
    replays: int = 0
    fallbacks: int = 0

    def add(self, plan: Plan, passes: Mapping[Pattern, Passes], batch: int, padded: int) -> None:
        """One run of `batch` samples and `padded` more."""
        patterns = [row.pattern for row in plan.rows if row.pattern is not None]
        most = max(pattern.net_rows for pattern in patterns)
        self.runs += 1
        self.samples += batch
        self.padded += padded
        self.evaluations += len(patterns)
        for pattern in patterns:
            self.rows += batch * pattern.net_rows
            self.rows_skipped += batch * (most - pattern.net_rows)
            for one in passes[pattern].all:
                whole = len(one.rows) * one.program.stages
                self.stage_rows += batch * one.program.stage_rows
                self.stage_rows_shared += batch * (whole - one.program.stage_rows)
