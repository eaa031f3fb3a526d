"""Every op in plain PyTorch, in the precision of its inputs: the definition that kernels are held
to.
"""

from fastguide.reference.attention import attention_colsum, identity_attention, self_attention
from fastguide.reference.blur import blur
from fastguide.reference.gram import gram
from fastguide.reference.group_norm import group_norm
from fastguide.reference.noise import noise, philox4x32
from fastguide.reference.step import combine, step

__all__ = [
    "attention_colsum",
    "blur",
    "combine",
    "gram",
    "group_norm",
    "identity_attention",
    "noise",
    "philox4x32",
    "self_attention",
    "step",
]
