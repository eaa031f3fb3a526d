"""The imports keep to the map of the package, and the map's page says what they are."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import fastguide.engine
import fastguide.sampling

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("architecture", ROOT / "scripts/architecture.py")
architecture = importlib.util.module_from_spec(SPEC)
sys.modules["architecture"] = architecture  # where a dataclass looks
SPEC.loader.exec_module(architecture)
ANEW = "run `python scripts/architecture.py` after merging"


def test_dependencies_point_down():
    imports = architecture.all_imports()
    assert len(imports) > 200
    assert not architecture.broken(imports)


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("fastguide.engine.run", "from fastguide.sampling.course import Course", "below engine"),
        ("fastguide.engine.run", "from fastguide import sampling", "below engine"),
        ("fastguide.engine.run", "import fastguide as fg", "below engine"),
        ("fastguide.engine.run", "from fastguide import CFG", "below engine"),
        ("fastguide.guidance.cfg", "from fastguide.solvers import ddim", "below guidance"),
        ("fastguide.solvers.edm", "from fastguide.guidance import CFG", "below solvers"),
        ("fastguide.guidance.cfg", "from fastguide import ops", "guidance does without"),
        ("fastguide.nets.dit", "def f():\n    from fastguide.engine import run", "below nets"),
        ("fastguide.common.log", "import fastguide.process", "below common"),
        ("fastguide.engine.run", "import fastguide.kernels.step", "only ops"),
        ("fastguide.nets.dit", "from fastguide.kernels.step import step", "only ops"),
        ("fastguide.sample", "import fastguide.serving.submit", "below sample"),
        ("fastguide.engine.run", "from fastguide.attic import box", "give attic its place"),
        ("fastguide.attic", "from fastguide.engine import run", "give attic its place"),
    ],
)
def test_what_is_against_the_rules(module, source, why):
    (found,) = architecture.broken(architecture.imports_of(module, source))
    assert why in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastguide.engine.run", "from fastguide.engine.plan import Plan"),
        ("fastguide.engine.run", "import torch\nfrom fastguide.solvers import ddim"),
        ("fastguide.sample", "def f():\n    from fastguide.serving.submit import Requests"),
        (
            "fastguide.sample",
            "if TYPE_CHECKING:\n    from fastguide.serving.submit import Requests",
        ),
        ("fastguide.cli.sample", "import fastguide as fg"),
    ],
)
def test_what_is_not(module, source):
    assert not architecture.broken(architecture.imports_of(module, source))


def test_solvers_know_no_tensors():
    for path in (ROOT / "fastguide/solvers").glob("*.py"):
        assert not re.search(r"^\s*(import|from) torch", path.read_text(), re.M), path


def test_the_page_and_its_picture_are_current():
    imports, text = architecture.all_imports(), architecture.PAGE.read_text()
    assert text == architecture.page(text), ANEW
    assert architecture.PICTURE.read_text() == architecture.picture(imports), ANEW


def test_the_page_names_files_that_exist():
    named = re.findall(
        r"`([\w./*-]+\.(?:py|cpp|cu|cuh|h|json|svg|md))`", architecture.PAGE.read_text()
    )
    assert len(named) > 40
    missing = [name for name in named if not list(ROOT.glob(name))]
    assert not missing


@pytest.mark.parametrize("room", [fastguide.engine, fastguide.sampling])
def test_a_room_s_map_has_all_its_files(room):
    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")} - {"__init__"}
    drawn = re.findall(r"^ {4,}(\w+) {2,}\S", room.__doc__, re.M)
    other = set(re.findall(r"`(\w+)`", room.__doc__))
    assert len(drawn) == len(set(drawn))
    assert set(drawn) <= files
    assert files - set(drawn) <= other, "give it its place in the docstring of __init__"
