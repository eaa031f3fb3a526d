"""The revision that rows are compared with: which one, and its package, built beside the tree.

It lies under build/base: a folder for each revision, and one for each state of csrc and way to
build it, whose extension revisions share.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import torch

FLAGS = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")  # of the environment


def git(root: Path, *words: str) -> str | None:
    """What git prints; None where it fails."""
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def resolve(root: Path, base: str) -> str:
    """The commit that `base` names in the repository at `root`. "auto": where the branch left the
    default one; on that one HEAD, if files have changed since, else the last tag before HEAD, else
    the commit before it.

    Raises:
        ValueError: there is no such revision.
    """
    if base == "auto":
        base = automatic(root)
    found = git(root, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    if not found:
        raise ValueError(f"base is {base!r}, but it should be a revision of {root}, or none")
    return found


def automatic(root: Path) -> str:
    """See `resolve`."""
    head = git(root, "rev-parse", "HEAD")
    for name in ("origin/HEAD", "main", "master"):
        left = git(root, "merge-base", "HEAD", name)
        if left and left != head:
            return left
        if left:
            break
    if git(root, "status", "--porcelain", "--untracked-files=no"):
        return "HEAD"
    return git(root, "describe", "--tags", "--abbrev=0", "HEAD~1") or "HEAD~1"


def built(root: Path, commit: str) -> Path:
    """The folder to import the package of `commit` from.

    Raises:
        RuntimeError: it does not build.
    """
    key = way_to_build(root, commit)
    folder = root / "build" / "base" / f"{commit[:12]}-{key}"
    compiled = folder.parent / f"extension-{key}"
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
        unfinished.mkdir(parents=True)
        try:
            unpack(root, commit, unfinished)
            if not compiled.exists():
                compile_in(unfinished)
                (library,) = (unfinished / "fastguide").glob("_C.*")
                (unfinished / "extension").mkdir()
                library.rename(unfinished / "extension" / library.name)
                (unfinished / "extension").rename(compiled)
            (library,) = compiled.iterdir()
            (unfinished / "fastguide" / library.name).symlink_to(library)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder / "import"


def way_to_build(root: Path, commit: str) -> str:
    """A digest of all that the extension is made of."""
    of_commit = [git(root, "rev-parse", f"{commit}:{path}") or "" for path in ("csrc", "setup.py")]
    flags = [f"{name}={os.environ.get(name, '')}" for name in FLAGS]
    made_by = [*of_commit, sys.version, torch.__version__, *flags]
    return hashlib.sha256("\n".join(made_by).encode()).hexdigest()[:8]


def unpack(root: Path, commit: str, folder: Path) -> None:
    """The files of `commit`, and import/fastguide, a link with its kernels inside."""
    archive = folder / "files.tar"
    subprocess.run(["git", "archive", "--output", archive, commit], cwd=root, check=True)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    archive.unlink()
    (folder / "import").mkdir()
    (folder / "import" / "fastguide").symlink_to("../fastguide")
    if (folder / "kernels").is_dir():  # what package-dir of pyproject.toml is to an install
        (folder / "fastguide" / "kernels").symlink_to("../kernels")


def compile_in(folder: Path) -> None:
    """The extension in place, for the CPU."""
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder,
        env={"MAX_JOBS": str(os.cpu_count() or 2), **os.environ, "FASTGUIDE_CUDA": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{folder} does not build:\n{done.stdout[-4000:]}")
