"""The command `fastguide` within this process."""

import contextlib
import io
import sys
from subprocess import CompletedProcess
from unittest.mock import patch

from fastguide.cli import main


def fastguide(*arguments) -> CompletedProcess:
    """What the command prints and returns; a process of its own would take seconds to start."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["fastguide", *map(str, arguments)]
    with (
        patch.object(sys, "argv", argv),
        patch("fastguide.common.heap.keep_freed_memory"),  # which would outlast the command
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code: int | str | None = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code
    return CompletedProcess(argv, code or 0, out.getvalue(), err.getvalue())
