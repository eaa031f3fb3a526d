"""The table of docs/solvers.md is that of the solvers there are."""

import importlib.util
from pathlib import Path

from fastguide.solvers import SOLVERS

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("solver_table", ROOT / "scripts/solver_table.py")
solver_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(solver_table)


def test_the_page_is_current():
    assert solver_table.PAGE.read_text(encoding="utf-8") == solver_table.page(), (
        "run `python scripts/solver_table.py`"
    )


def test_every_solver_has_a_source_and_each_deterministic_one_an_order():
    assert set(solver_table.SOURCES) == set(SOLVERS)
    for name, solver in SOLVERS.items():
        if solver_table.noise(solver) != "yes":
            assert solver_table.orders(name, solver) != "-" or "ancestral" in name
