#!/usr/bin/env bash
# Builds the CPU ops with the address and undefined-behaviour sanitizers: build/sanitized/_C.so, for
# tests/attack/attack_ops.py. Sources that have not changed since are not compiled again.
#   PYTHON=python3 bash scripts/sanitized_build.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
out=${1:-build/sanitized}
mkdir -p "$out"
mapfile -t includes < <("$PYTHON" - <<'PY'
import sysconfig
from torch.utils.cpp_extension import include_paths
for path in [*include_paths(), sysconfig.get_paths()["include"]]:
    print("-isystem" + path)
PY
)
libraries=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")')
flags=(-std=c++20 -O1 -g1 -fPIC -fopenmp -ffp-contract=fast -fno-math-errno -fno-trapping-math
  -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
  -DTORCH_EXTENSION_NAME=_C "${includes[@]}")
newest=$(find csrc scripts/sanitized_build.sh -name '*.h' -o -name 'sanitized_build.sh' | xargs ls -t | head -1)
compile() {
  object=$out/$(basename "${1%.cpp}").o
  [ "$object" -nt "$1" ] && [ "$object" -nt "$newest" ] && return
  g++ "${flags[@]}" -c "$1" -o "$object"
}
for source in csrc/*.cpp csrc/cpu/*.cpp; do  # as in setup.py
  compile "$source" &
  while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
done
for job in $(jobs -p); do wait "$job"; done
g++ -shared -fopenmp -fsanitize=address,undefined "$out"/*.o -o "$out/_C.so" -L"$libraries" -lc10 -ltorch -ltorch_cpu -ltorch_python
