"""The table of actions on pipelines in docs/diffusers.md, from the outcome of the tests.
`python scripts/pipeline_table.py` runs every cell and writes it anew, some minutes;
`python scripts/pipeline_table.py offload scheduler` runs only rows whose names have such a word.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/helpers"))

from pipeline_actions import ACTIONS, FAMILIES, outcome
from pipeline_table import cell, read, write


def main() -> None:
    """Run the cells and write the page's table."""
    warnings.simplefilter("ignore")
    words = sys.argv[1:]
    cells = read() if words else {}
    for action in ACTIONS:
        if words and not any(word in action for word in words):
            continue
        for family in FAMILIES:
            found = outcome(family, action)
            cells[action, family] = cell(found)
            print(f"{family}, {action}: {found}", flush=True)
    write(list(ACTIONS), cells)


if __name__ == "__main__":
    main()
