"""The command `fastguide`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; a wrong argument, a file that cannot be read or written and memory that is
    too small are one clear line and exit code 2, not a traceback.
    """
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ModuleNotFoundError as error:
        print(
            f"fastguide: the command needs {error.name}: pip install 'fastguide[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from fastguide.cli.app import run

    run()
