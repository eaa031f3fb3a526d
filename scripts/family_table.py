"""The table of families and methods in docs/families.md, from the outcome of the tests.
`python scripts/family_table.py` runs tests/staging/test_families.py and writes it anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/families.md"
TESTS = "tests/staging/test_families.py"
BEGIN, END = "<!-- table -->\n", "<!-- /table -->\n"
COLUMNS = {
    "pag": "PAG",
    "seg": "SEG",
    "seg of 1": "SEG, finite sigma",
    "slg": "SLG, STG",
    "tokens": "TPG",
    "times": "TSG",
}


def outcomes(report: Path) -> dict[tuple[str, str], str]:
    """For each family and column: "yes", "no" where the test says it cannot be, or "fails"."""
    found: dict[tuple[str, str], str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name, _, rest = case.attrib["name"].partition("[")
        outcome = "yes"
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "fails"
        elif case.find("skipped") is not None:
            outcome = "no"
        if name == "test_published_formulas":
            match = re.fullmatch(rf"(.+)-({'|'.join(COLUMNS)})\]", rest)
            assert match is not None
            found[match[1], match[2]] = outcome
        elif name in ("test_tokens", "test_times"):
            found[rest.removesuffix("]"), name.removeprefix("test_")] = outcome
    return found


def table(found: dict[tuple[str, str], str]) -> str:
    """The table in Markdown."""
    families = dict.fromkeys(family for family, _ in found)
    lines = ["| family | " + " | ".join(COLUMNS.values()) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for family in families:
        cells = [found.get((family, column), "not tested") for column in COLUMNS]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the tests and write the page's table."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", TESTS, f"--junitxml={report}"]
        subprocess.run([*command, "--import-mode=importlib"], cwd=ROOT, check=False)
        made = table(outcomes(report))
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(before + BEGIN + made + END + after)


if __name__ == "__main__":
    main()
