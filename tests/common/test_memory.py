"""Freed memory stays with the process only where it was asked to."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from fastguide.common.heap import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
a = torch.ones(24_000_000)  # 96 MB: above every threshold that glibc chooses by itself
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(4)))
"""


def page_faults(choice):
    command = [sys.executable, "-c", PROGRAM, choice]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_large_blocks_are_used_again():
    assert page_faults("keep") < 10
    assert page_faults("leave") > 40  # huge pages of 2 MB at best
