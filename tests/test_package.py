"""What must hold of the package as a whole: imports, dependencies, the build."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import fastguide as fg
from fastguide._C import build_info

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fg.__file__).parent


def imports(path):
    """Modules that a file imports at its top level or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_import_is_light():
    """No Triton without a GPU, none of the optional libraries, no command-line ones."""
    code = "import fastguide, sys; fastguide.CFG; print(*sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(out.stdout.split())
    for heavy in (
        "triton",
        "matplotlib",
        "scipy",
        "typer",
        "rich",
        "PIL",
        "diffusers",
        "transformers",
    ):
        assert heavy not in loaded


def test_nothing_unpickles():
    for path in PACKAGE.rglob("*.py"):
        modules = imports(path)
        assert not {"pickle", "torch.load", "joblib", "dill"} & modules, path
        assert "torch.load(" not in path.read_text(), path


def test_no_host_sync_in_the_loop():
    """Nothing in the loop asks a tensor for its value; the only such line is at the end of a
    run.
    """
    banned = {"item", "tolist", "cpu", "numpy", "nonzero", "any"}
    files = [
        PACKAGE / "engine" / f"{name}.py"
        for name in (
            *("run", "evaluate", "predict", "gradient", "project", "filters"),
            *("rows", "degrade"),
        )
    ]
    files += [*(PACKAGE / "nets").glob("*.py")]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in banned, ast.unparse(node)


def test_build_info():
    info = build_info()
    assert info["openmp"]
    assert info["torch"] == torch.__version__.split("+")[0]
    assert (info["cuda"] is None) == (torch.version.cuda is None)


def test_cpu_kernels_are_built_for_more_than_the_oldest_cpu():
    info = build_info()
    gcc = "clang" not in info["compiler"].lower()
    assert info["levels"] == (gcc and os.uname().machine == "x86_64")
    if not info["levels"]:
        pytest.skip(f"{info['compiler']} has no function clones")
    library = next(PACKAGE.glob("_C*.so"))
    code = subprocess.run(["objdump", "-d", library], capture_output=True, text=True, check=True)
    assert code.stdout.count("%zmm") > 1000  # AVX-512
    assert code.stdout.count("%ymm") > 1000  # AVX2


def test_a_checkout_without_a_build_says_what_to_do(tmp_path):
    unbuilt = tmp_path / "fastguide"
    shutil.copytree(PACKAGE, unbuilt, ignore=shutil.ignore_patterns("*.so", "__pycache__"))

    def last_line(then=""):
        # without the finder of an editable install, which would find the built module
        alone = "sys.meta_path = [f for f in sys.meta_path if 'Editable' not in str(f)]"
        program = f"import sys; {alone}; import fastguide; {then}"
        command = [sys.executable, "-c", program]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        return done.stderr.splitlines()[-1]

    last = last_line()
    assert last.startswith(f"ImportError: fastguide is not built: {unbuilt} has no compiled module")
    assert f"run `pip install --no-build-isolation --editable .` in {tmp_path}" in last
    (unbuilt / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"no library")
    assert f"does not load with torch {torch.__version__}" in last_line("fastguide.CFG")


@pytest.mark.parametrize(
    ("setting", "message"),
    [("2", "FASTGUIDE_CUDA is '2'"), ("1", "FASTGUIDE_CUDA is 1, but")],
)
def test_the_build_says_what_it_lacks(setting, message):
    if setting == "1" and torch.version.cuda is not None:
        pytest.skip("this torch has CUDA, so the setting is right")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "FASTGUIDE_CUDA": setting},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert message in done.stderr


def test_setup_stays_short():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 60


def test_version_is_stated_once():
    import importlib.metadata

    assert importlib.metadata.version("fastguide") == fg.__version__


def test_help_does_not_wait_for_torch():
    """Nor do the names of the commands, which shells complete."""
    for arguments in (["fastguide", "sample", "-h"], ["fastguide", "-h"]):
        program = f"import sys; sys.argv = {arguments}; from fastguide.cli import main\ntry: main()"
        program += "\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Draw guided samples" in done.stdout


def test_the_command_says_which_extra_it_needs():
    program = "import sys; sys.modules['typer'] = None; from fastguide.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "fastguide: the command needs typer: pip install 'fastguide[cli]'\n"


def test_names_stay_functions_whatever_is_imported_first():
    program = "import fastguide.sample, fastguide; from fastguide import sample, CFG\n"
    program += "assert callable(sample) and fastguide.sample is sample\n"
    program += "assert 'Sampler' in dir(fastguide) and not hasattr(fastguide, 'Nothing')"
    subprocess.run([sys.executable, "-c", program], check=True)
