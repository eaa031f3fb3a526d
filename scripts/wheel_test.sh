#!/usr/bin/env bash
# Installs dist/'s wheel into an empty environment of each Python that is named and runs, in an empty
# folder, the command and the tests that need no checkout:
#   scripts/wheel_test.sh python3.10 python3.12
# TORCH chooses the torch to install; TESTS the rooms of tests/.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
wheel=$(ls "$root"/dist/*.whl | tail -n 1)
torch=${TORCH:-torch==2.13.0}
tests=${TESTS:-common process solvers spacing nets sampling}

for python in "$@"; do
  work=$(mktemp -d)
  "$python" -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet "$torch" numpy
  "$work/venv/bin/pip" install --quiet "$wheel[cli,scipy]" pytest pytest-xdist
  mkdir "$work/empty"
  cd "$work/empty"
  "$work/venv/bin/fastguide" sample fashion --out samples.png --seeds 0-3 --steps 4
  cp -r "$root/tests" "$root/pyproject.toml" .
  paths=()
  for one in $tests; do
    if [ -d "tests/$one" ]; then paths+=("tests/$one"); else paths+=("tests/test_$one.py"); fi
  done
  OMP_NUM_THREADS=1 "$work/venv/bin/pytest" -q -n "$(nproc)" -p no:cacheprovider "${paths[@]}"
  cd "$root"
  rm -rf "$work"
  echo "wheel: passed with $("$python" --version)"
done
