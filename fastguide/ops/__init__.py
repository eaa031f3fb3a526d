"""The ops: one name each for CPU (C++), GPU (Triton, CUDA) and fake tensors. Inputs are checked
here.

Importing this module loads the compiled extension and registers the rest; Triton is imported when
an op first runs on a GPU.
"""

from fastguide.ops import built  # noqa: F401  (says what to do where nothing is built)
from fastguide.ops.attention_colsum import attention_colsum
from fastguide.ops.blur import blur
from fastguide.ops.gram import gram
from fastguide.ops.group_norm import group_norm
from fastguide.ops.identity_attention import identity_attention
from fastguide.ops.noise import as_seeds, derive_seeds, noise
from fastguide.ops.self_attention import self_attention
from fastguide.ops.step import as_planes, step

__all__ = [
    "as_planes",
    "as_seeds",
    "attention_colsum",
    "blur",
    "derive_seeds",
    "gram",
    "group_norm",
    "identity_attention",
    "noise",
    "self_attention",
    "step",
]
