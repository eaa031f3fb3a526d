"""The command `fastguide`."""

from __future__ import annotations

import sys

import typer

from fastguide.cli.ema import ema
from fastguide.cli.info import info
from fastguide.cli.judges import classifier, clip
from fastguide.cli.sample import sample
from fastguide.cli.sims import sims
from fastguide.cli.train import train

app = typer.Typer(no_args_is_help=True, add_completion=False)
for command in (sample, train, sims, ema, classifier, clip, info):
    app.command()(command)


@app.callback()
def _help() -> None:
    """Guided sampling of diffusion and flow models."""


def main() -> None:
    """Run the command; a wrong argument is one clear line and exit code 2, not a traceback."""
    from rich.console import Console

    from fastguide.common.heap import keep_freed_memory

    keep_freed_memory()
    try:
        app()
    except (ValueError, TypeError, FileNotFoundError, FloatingPointError) as error:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(
            f"fastguide: {error}"
        )
        sys.exit(2)
