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
    """Run the command; a wrong argument, a file that cannot be read or written and memory that is
    too small are one clear line and exit code 2, not a traceback.
    """
    from rich.console import Console

    from fastguide.common.heap import keep_freed_memory

    keep_freed_memory()
    try:
        app()
    except (ValueError, TypeError, OSError, FloatingPointError, MemoryError) as error:
        text = str(error) or "there is not enough memory"
    except RuntimeError as error:
        if not _is_memory(error):
            raise
        text = str(error).partition("\n")[0]
    else:
        return
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"fastguide: {text}")
    sys.exit(2)


def _is_memory(error: RuntimeError) -> bool:
    """Whether a device or the host ran out of memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
