"""`fastguide ema`: averaged weights of any length, after the training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastguide.cli.dtypes import STORED, dtype_of


def ema(
    run: Annotated[Path, typer.Argument(help="folder of `fastguide train --lengths ...`")],
    out: Annotated[Path, typer.Argument(help="folder for the model")],
    length: Annotated[float, typer.Option(help="of the average, a share of the training")] = 0.1,
    step: Annotated[int | None, typer.Option(help="the last one kept by default")] = None,
    dtype: Annotated[str, typer.Option(help="of the stored weights: fp32 or fp16")] = "fp32",
) -> None:
    """Write the model of RUN with weights averaged over another length, or at another step."""

    from fastguide.checkpoint import models as checkpoint
    from fastguide.training.posthoc import kept_averages, reconstruct

    chosen_dtype = dtype_of(dtype, STORED)
    weights = reconstruct(kept_averages(run), length, step)
    model = checkpoint.load(run)
    made = {"of": run.name, "length": length, "step": step}
    checkpoint.save(out, model, weights, chosen_dtype, made)
    typer.echo(f"{out}: {run.name} averaged with length {length:g}")
