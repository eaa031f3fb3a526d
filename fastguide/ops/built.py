"""Loads the compiled extension, or says what to do where there is none that fits."""

from pathlib import Path

import torch

COMMAND = "pip install --no-build-isolation --editable ."


def explained(error: ImportError, folder: Path) -> ImportError:
    """What to do about an `error` of importing `fastguide._C` from the package in `folder`."""
    if isinstance(error, ModuleNotFoundError):
        return ImportError(
            f"fastguide is not built: {folder} has no compiled module _C for this Python; run "
            f"`{COMMAND}` in {folder.parent}, or import it from another folder if it is installed "
            "elsewhere"
        )
    return ImportError(
        f"fastguide._C in {folder} does not load with torch {torch.__version__}: {error}; if "
        f"it was built with another torch, run `{COMMAND}` again"
    )


try:
    import fastguide._C  # noqa: F401  (registers the schemas)
except ImportError as error:
    raise explained(error, Path(__file__).parents[1]) from error
