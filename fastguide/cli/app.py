"""The commands there are; each is imported when it runs, as torch takes seconds."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import fastguide

# the module of each command, which is the function of its name
COMMANDS = {
    "sample": "sample",
    "train": "train",
    "sims": "sims",
    "ema": "ema",
    "classifier": "judges",
    "clip": "judges",
    "info": "info",
}
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


class _Later(TyperCommand):
    """What a command is called and does, until it is run or asked for its own help."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        return command(str(self.name)).make_context(*args, **kwargs)


class _Commands(TyperGroup):
    def __init__(self, **kwargs: Any) -> None:
        later = {one: _Later(one, help=_about(one), add_help_option=False) for one in COMMANDS}
        super().__init__(**{**kwargs, "commands": later})


def command(name: str) -> Any:
    """The command itself."""
    function = getattr(import_module(f"fastguide.cli.{COMMANDS[name]}"), name)
    one = typer.Typer(add_completion=False, context_settings=SETTINGS)
    one.command(name)(function)
    return typer.main.get_command(one)


def _about(name: str) -> str:
    """The docstring of a command, read without importing it."""
    source = (Path(__file__).parent / f"{COMMANDS[name]}.py").read_text(encoding="utf-8")
    found = (one for one in ast.parse(source).body if isinstance(one, ast.FunctionDef))
    text = next(ast.get_docstring(one) or "" for one in found if one.name == name)
    return " ".join(text.split())


app = typer.Typer(cls=_Commands, no_args_is_help=True, context_settings=SETTINGS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastguide {fastguide.__version__}")
        raise typer.Exit


@app.callback()
def _help(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and exit.")
    ] = False,
) -> None:
    """Guided sampling of diffusion and flow models."""


def run() -> None:
    """Run the command of `sys.argv`; see `fastguide.cli.main`."""
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
