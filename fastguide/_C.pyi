from typing import TypedDict

class BuildInfo(TypedDict):
    torch: str
    compiler: str
    highest: int
    cuda: str | None
    openmp: bool

def build_info() -> BuildInfo: ...
