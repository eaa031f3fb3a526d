from typing import TypedDict

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    cuda: str | None
    openmp: bool
    levels: bool  # kernels for AVX2 and AVX-512 beside the plain ones

def build_info() -> BuildInfo: ...
