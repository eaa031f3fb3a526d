"""Files that are whole or absent, and what a killed writer leaves."""

import os
import signal
import subprocess
import sys

import pytest

from fastguide.common.files import write_atomic

KILLED = """
import os, signal, sys
from pathlib import Path
from fastguide.common.files import write_atomic
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), b"new")
"""


def test_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "a[1].bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    other = tmp_path / ".b.bin.0123.tmp"
    other.write_bytes(b"of another file")
    write_atomic(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, other.name])


def test_what_another_writer_holds_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    real = os.replace

    def meanwhile(source, target):
        monkeypatch.setattr(os, "replace", real)
        write_atomic(path, b"inner")
        assert os.path.exists(source)
        real(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    write_atomic(path, b"outer")
    assert path.read_bytes() == b"outer"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
def test_what_is_no_file_of_ours_is_left_alone(tmp_path, kind):
    odd = tmp_path / ".a.bin.0123.tmp"
    if kind == "folder":
        odd.mkdir()
    elif kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to("nowhere")
    write_atomic(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert os.path.lexists(odd)
