"""`fastguide info`: what is installed and built, what is missing and how to get it; what a model
is.
"""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Annotated

import typer


def info(
    model: Annotated[str, typer.Argument(help="a bundled model, or a folder")] = "",
) -> None:
    """Show version, build, devices, bundled models, and what is missing; or what MODEL is."""
    if model:
        _show_model(model)
        return
    import torch
    from rich.console import Console
    from rich.table import Table

    import fastguide
    from fastguide._C import build_info
    from fastguide.assets import bundled

    build = build_info()
    table = Table(show_header=False, box=None)
    table.add_row("fastguide", fastguide.__version__)
    table.add_row("python", f"{platform.python_version()} on {platform.machine()}")
    table.add_row("torch", f"{torch.__version__} (extension built against {build['torch']})")
    table.add_row("compiler", str(build["compiler"]))
    table.add_row(
        "cpu kernels",
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    )
    table.add_row("cuda kernels", f"CUDA {build['cuda']}" if build["cuda"] else "not built")
    table.add_row("triton", _version("triton") or "not installed")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("gpus", ", ".join(devices) or "none")
    table.add_row("models", ", ".join(bundled()) or "none")
    Console().print(table)
    for line in _missing(bool(build["cuda"]), torch.version.cuda, bool(devices)):
        typer.echo(f"missing: {line}")


def _show_model(name: str) -> None:
    from rich.console import Console
    from rich.table import Table

    import fastguide as fg
    from fastguide.staging.contract import Staged, choose_layers, layers_of

    model = fg.load(name)
    table = Table(show_header=False, box=None)
    table.add_row("network", type(model.net).__name__)
    table.add_row("process", repr(model.process))
    table.add_row("prediction", model.prediction.name)
    table.add_row("shape", " x ".join(map(str, model.shape)))
    table.add_row("heads", str(model.heads))
    table.add_row("classes", ", ".join(model.class_names) or "unconditional")
    if isinstance(model.net, Staged):
        table.add_row("layers", ", ".join(layers_of(model.net)))
        table.add_row("mid", ", ".join(choose_layers(("mid",), model.net)))
        timed = [layer for stage in model.net.stages if stage.timed for layer in stage.layers]
        table.add_row("of the time", ", ".join(timed) or "none")
    Console(highlight=False).print(table)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing(built: bool, torch_cuda: str | None, gpu: bool) -> list[str]:
    lines = []
    if torch_cuda is None:
        lines.append("GPU support: this torch is a CPU build; install a CUDA build of torch")
    elif not gpu:
        lines.append("a GPU: torch sees none; check the driver (nvidia-smi)")
    if torch_cuda is not None and not built:
        lines.append(
            "CUDA kernels: install the CUDA toolkit (nvcc), then "
            "FASTGUIDE_CUDA=1 pip install --no-build-isolation --no-deps --force-reinstall "
            "fastguide"
        )
    if gpu and _version("triton") is None:
        lines.append("triton: pip install triton")
    return lines
