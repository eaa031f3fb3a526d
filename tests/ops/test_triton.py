"""The Triton kernels against the fp64 reference, run by Triton's interpreter.

The tests are the functions `interpreted_*` in `interpreted_<op>.py`. They run in a process of their
own, as Triton reads TRITON_INTERPRET when it is imported; to choose among them:
    TRITON_INTERPRET=1 pytest -o python_functions="interpreted_*" tests/ops/interpreted_step.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("interpreted_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_kernels_in_the_interpreter(file, tmp_path):
    command = [sys.executable, "-m", "pytest", "-o", "python_functions=interpreted_*", str(file)]
    run = subprocess.run(
        [*command, "-q", "--no-header", "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_there_are_files():
    assert FILES
