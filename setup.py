"""Build the compiled kernels; everything else about the package is in pyproject.toml.

FASTGUIDE_CUDA=0 leaves the CUDA kernels out, 1 insists on them; unset, they are built when torch
has CUDA and nvcc is found. TORCH_CUDA_ARCH_LIST chooses the GPUs, as for every torch extension.
"""

import os
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension


def want_cuda() -> bool:
    """Whether to build the CUDA kernels; an error where they are insisted on and cannot be."""
    setting = os.environ.get("FASTGUIDE_CUDA", "")
    if setting not in ("", "0", "1"):
        raise SystemExit(f"FASTGUIDE_CUDA is {setting!r}, but it should be 0, 1 or unset")
    home = cpp_extension.CUDA_HOME
    found = home is not None and (Path(home) / "bin" / "nvcc").exists()
    if setting == "1" and torch.version.cuda is None:
        raise SystemExit(
            f"FASTGUIDE_CUDA is 1, but torch {torch.__version__} is a build without CUDA"
        )
    if setting == "1" and not found:
        raise SystemExit(
            f"FASTGUIDE_CUDA is 1, but no nvcc was found (CUDA_HOME is {home}); set CUDA_HOME"
        )
    return setting != "0" and torch.version.cuda is not None and found


root = Path(__file__).parent
cuda = want_cuda()
if cuda and not torch.cuda.is_available():  # torch asks the GPUs here which ones to build for
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
folders = ["csrc", "csrc/cpu"] + ["csrc/cuda"] * cuda
sources = [p for f in folders for p in sorted((root / f).iterdir()) if p.suffix in (".cpp", ".cu")]
math = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
flags = {
    # fp-contract: fused multiply-adds in the clones that have them; errno and traps block
    # vectorising; g0: Python asks for debug information, which would be 25 times the code
    "cxx": ["-O3", "-g0", "-fopenmp", *math],
    "nvcc": ["-O3", "-lineinfo", "-Xptxas", "-warn-spills"],
}
extension = (cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension)(
    "fastguide._C",
    [str(p.relative_to(root)) for p in sources],
    depends=[str(p.relative_to(root)) for p in sorted((root / "csrc").rglob("*.*"))],
    define_macros=[("FASTGUIDE_CUDA", f'"{torch.version.cuda}"')] if cuda else [],
    extra_compile_args=flags if cuda else flags["cxx"],
    extra_link_args=["-fopenmp", "-s"],  # -s: no table of symbols that nothing looks up
    py_limited_api=True,  # one build serves every CPython from 3.10 on
)
setup(
    ext_modules=[extension],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
