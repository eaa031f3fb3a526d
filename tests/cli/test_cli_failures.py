"""What the command line says when it cannot: one line and exit code 2, never a traceback."""

import resource
import signal
import subprocess
import sys

import pytest
from command import fastguide

COMMAND = [sys.executable, "-c", "from fastguide.cli import main; main()"]
QUICK = ["--steps", "1", "--seeds", "0"]


def small_disk():
    """Files may have 100 bytes, as on a disk that is full after that many."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def on_a_small_disk(*arguments):
    command = [*COMMAND, *map(str, arguments)]
    options = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, **options, preexec_fn=small_disk)


def failed(*arguments, run=fastguide):
    """The one line of a command that fails."""
    done = run(*arguments)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("fastguide: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_full_disk(tmp_path):
    """In a process of its own, as the limit would hold for all tests."""
    out = tmp_path / "a.png"
    line = failed("sample", "fashion", "--out", out, *QUICK, run=on_a_small_disk)
    assert "File too large" in line
    assert str(out) in line
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file is not a folder" in failed("sample", "fashion", "--out", tmp_path / "file", *QUICK)
    out = tmp_path / "file" / "a.png"
    assert str(tmp_path / "file") in failed("sample", "fashion", "--out", out, *QUICK)
    (tmp_path / "b.png").mkdir()
    assert "is a folder" in failed("sample", "fashion", "--out", tmp_path / "b.png", *QUICK)


def test_a_place_that_cannot_be_written(tmp_path):
    """Not even by the administrator, who may write to what is read-only."""
    assert "/proc/a.png" in failed("sample", "fashion", "--out", "/proc/a.png", *QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "gpu"], "device is 'gpu'"),
        (["--device", "cuda:99"], "device is 'cuda:99'"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--seeds", "0-99999999999"], "seeds is '0-99999999999'"),
        (["--seeds", "9223372036854775808"], "below 2^63"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    out = tmp_path / "a.png"
    assert message in failed("sample", "fashion", "--out", out, *QUICK, *options)
    assert not out.exists()
