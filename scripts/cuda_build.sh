#!/usr/bin/env bash
# Builds the package with its CUDA kernels in .venv-cuda and checks the result; needs nvcc, no GPU.
#   PYTHON  CUDA_TORCH  CUDA_HOME  TORCH_CUDA_ARCH_LIST  MAX_JOBS  choose what and how, as below
# The first run installs a CUDA build of torch (some 5.5 GB), later runs keep it.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_version=${CUDA_TORCH:-2.14.1}
python=${PYTHON:-python3}
venv=$PWD/.venv-cuda
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-8.0 9.0}
export FASTGUIDE_CUDA=1 MAX_JOBS=${MAX_JOBS:-2}
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
  echo "cuda-build: $*" >&2
  exit 1
}
trap 'fail "line $LINENO failed: $BASH_COMMAND"' ERR
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# the toolkit: nvcc on PATH may be a link or a wrapper, so it is asked where it lives
if [ -z "${CUDA_HOME:-}" ]; then
  nvcc=$(command -v nvcc) || fail "nvcc is not on PATH and CUDA_HOME is not set"
  echo > "$work/empty.cu"
  top=$("$nvcc" --dryrun "$work/empty.cu" 2>&1 | sed -n 's/^#\$ TOP=//p')
  CUDA_HOME=$(readlink -f "${top:-$(dirname "$(readlink -f "$nvcc")")/..}")
fi
export CUDA_HOME
for file in bin/nvcc include/cuda_runtime.h; do
  [ -e "$CUDA_HOME/$file" ] || fail "CUDA_HOME is $CUDA_HOME, but it has no $file"
done
nvcc_version=$("$CUDA_HOME/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')

# the environment
if [ "$("$venv/bin/python" --version 2> /dev/null)" != "$("$python" --version)" ]; then
  "$python" -m venv --clear "$venv" || fail "$python -m venv $venv failed"
fi
run() { "$venv/bin/python" "$@"; }
installed() { run -c 'import sys, importlib.metadata as m; print(m.version(sys.argv[1]))' "$1"; }
if [ "$(installed torch 2> /dev/null | cut -d+ -f1)" != "$torch_version" ]; then
  echo "cuda-build: installing torch $torch_version into $venv"
  run -m pip install --quiet "torch==$torch_version" || fail "torch $torch_version did not install"
fi
run -m pip install --quiet 'setuptools>=77' wheel ninja \
  numpy safetensors typer rich Pillow || fail "the build's tools did not install"
torch_cuda=$(run -c 'import torch; print(torch.version.cuda or "")')
[ -n "$torch_cuda" ] || fail "torch $torch_version is a build without CUDA"
[ "${torch_cuda%%.*}" = "${nvcc_version%%.*}" ] ||
  fail "nvcc is $nvcc_version, but torch $torch_version needs CUDA ${torch_cuda%%.*}"

# build a copy, so that nothing of another build is taken over
mkdir "$work/source" "$work/elsewhere"
cp -r setup.py pyproject.toml README.md LICENSE csrc fastguide kernels "$work/source"
find "$work/source" \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +
start=$SECONDS
run -m pip install --quiet --no-build-isolation --no-deps --force-reinstall "$work/source" \
  > "$work/log" 2>&1 || { cat "$work/log" >&2; fail "the build failed"; }
echo "cuda-build: built in $((SECONDS - start)) s with nvcc $nvcc_version, torch $torch_version"

cd "$work/elsewhere"
run - << 'CHECK' || fail "the build does not hold what it should"
import os, re, shutil, subprocess, sys
from pathlib import Path

import torch
import triton

import fastguide._C as built
from fastguide import ops, reference
from fastguide.ops import table


def check(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(f"cuda-build: {message}")


library = Path(built.__file__)
info = built.build_info()
check(library.is_relative_to(sys.prefix), f"fastguide was imported from {library}")
check(info["cuda"] == torch.version.cuda, f"build_info() is {info}")
for op in ("noise", "step", "gram", "blur", "identity_attention", "attention_colsum"):
    has = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastguide::{op}", "CUDA")
    check(has, f"{op} has no CUDA kernel")

bundled = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
check(tool is not None, f"no cuobjdump at {bundled}, nor on PATH")
command = [tool, "--dump-resource-usage", str(library)]
text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
wanted = re.findall(r"\d+\.\d+[af]?", os.environ["TORCH_CUDA_ARCH_LIST"])
for arch in ["sm_" + name.replace(".", "") for name in wanted]:
    parts = [part for part in text.split("Fatbin elf code:") if f"arch = {arch}\n" in part]
    kernels = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", "".join(parts))
    check(bool(kernels), f"{library.name} has no kernels for {arch}; it has\n{text}")
    for name, registers, stack, local in kernels:
        plain = re.findall(r"[a-z_]+_kernel", name) or [name]  # out of the mangled name
        print(f"  {arch} {plain[-1]}: {registers} registers")
        check(stack == local == "0", f"{name} spills on {arch}: stack {stack}, local {local}")

seeds = torch.tensor([3, 4])
noise = ops.noise(seeds, (3, 5, 7), 1)
want = reference.noise(seeds, 1, 105).view(2, 3, 5, 7)
torch.testing.assert_close(noise.double(), want, rtol=1e-6, atol=2e-6)
assert torch.equal(ops.noise(seeds, (3, 5, 7), torch.tensor([1])), noise)
state, row = torch.randn(1, 2, 3, 5, 7), torch.randn(1, table.width(1))
want, _ = reference.step(state.double(), [noise], torch.ones(1, 2), row[0].double())
bad = torch.ones(2, dtype=torch.int32)
ops.step(state, [noise], torch.ones(1, 1, 2), row, torch.tensor(0), bad)
torch.testing.assert_close(state.double(), want, rtol=2e-6, atol=4e-6)
q, k, v, context_k, context_v = torch.randn(5, 1, 2, 7, 8)
out = ops.identity_attention(q, k, v, context_k, context_v, 0.3)
want = reference.identity_attention(q, k, v, context_k, context_v, 0.3)
torch.testing.assert_close(out, want)
torch.testing.assert_close(ops.attention_colsum(q, k), reference.attention_colsum(q, k, 8**-0.5))
print(f"  CUDA {info['cuda']} kernels of every op are registered; the CPU ops work beside them")
CHECK
