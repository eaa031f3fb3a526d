#!/usr/bin/env bash
# Builds the CPU ops in another way than setup.py, into build/NAME/_C.so, for tests that load it
# (tests/helpers/built.py):
#   bash scripts/other_build.sh sanitized   with the address and undefined-behaviour sanitizers
#   bash scripts/other_build.sh clang       with clang, which has no function clones
#   bash scripts/other_build.sh aarch64     for ARM, with GCC: to be compiled, and loaded there alone
# PYTHON chooses the interpreter, JOBS how many files are compiled at once. What has not changed
# since is not compiled again.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
JOBS=${JOBS:-$(nproc)}
name=${1:-}
out=build/$name

# the flags of setup.py, but for what a build is made for: one that is quick, or that tells of faults
flags=(-std=c++20 -fPIC -fopenmp -ffp-contract=fast -fno-math-errno -fno-trapping-math)
case $name in
  sanitized)
    compiler=g++ header=$out/torch.h.gch use=(-include "$out/torch.h")
    flags+=(-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined)
    ;;
  clang)
    compiler=clang++ header=$out/torch.pch use=(-include-pch "$out/torch.pch")
    flags+=(-O2 -g0)
    ;;
  aarch64)
    compiler=aarch64-linux-gnu-g++ header=$out/torch.h.gch use=(-include "$out/torch.h")
    flags+=(-O3 -g0)
    ;;
  *) echo "NAME is '$name', but it should be sanitized, clang or aarch64" >&2; exit 2 ;;
esac
mkdir -p "$out"
mapfile -t includes < <("$PYTHON" - <<'PY'
import sysconfig
from torch.utils.cpp_extension import include_paths
for path in [*include_paths(), sysconfig.get_paths()["include"]]:
    print("-isystem" + path)
PY
)
libraries=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "lib")')
flags+=(-DTORCH_EXTENSION_NAME=_C "${includes[@]}")

# everything anew where compiler, flags or torch are others
about="$($compiler --version | head -1) ${flags[*]} $("$PYTHON" -c 'import torch; print(torch.__version__)')"
[ "$(cat "$out/about" 2> /dev/null)" = "$about" ] || rm -f "$out"/*
echo "$about" > "$out/about"

# the headers of torch take longer to read than any file of ours to compile: once is enough
if [ ! -e "$header" ]; then
  printf '#include <ATen/Parallel.h>\n#include <ATen/core/Tensor.h>\n' > "$out/torch.h"
  "$compiler" "${flags[@]}" -x c++-header "$out/torch.h" -o "$header"
fi
newest=$(find csrc -name '*.h' -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
compile() {
  object=$out/$(basename "${1%.cpp}").o
  [ "$object" -nt "$1" ] && [ "$object" -nt "$newest" ] && return
  "$compiler" "${flags[@]}" "${use[@]}" -c "$1" -o "$object.part" && mv "$object.part" "$object"
}
running=()
for source in csrc/*.cpp csrc/cpu/*.cpp; do
  while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do sleep 0.05; done
  compile "$source" &
  running+=($!)
done
for one in "${running[@]}"; do wait "$one"; done
link=(-L"$libraries" -lc10 -ltorch -ltorch_cpu -ltorch_python)
[ "$name" != aarch64 ] || link=() # those here are for another processor
"$compiler" -shared "${flags[@]}" "$out"/*.o -o "$out/_C.so" "${link[@]}"
