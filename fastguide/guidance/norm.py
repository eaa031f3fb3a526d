"""CFG-Norm: a guided prediction that is no larger than the positive one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastguide.guidance.base import Guidance, Modified, Term, check_guidance
from fastguide.guidance.modifiers import Norm


@dataclass(frozen=True, eq=False)
class CFGNorm(Guidance):
    """The guided prediction g of `guidance` with the positive prediction's norm:
    `min(1, cap |c| / |g|) g`, or `(cap |c| / |g|) g` where it also `grows`. As pipelines of
    diffusers have it: Qwen-Image `axes=-1, grows=True` on packed latents, Lumina2 the same on rows
    of pixels, Z-Image (`cfg_normalization`) `axes=None` and its cap. ComfyUI's node is the default.

    Of a sum, that of what is within: `CFGNorm(CFG(4.0)) + PAG(1.0)`.

    Args:
        axes: of one sample, without its batch, along which a norm is taken: by default the first,
            which are the channels; None for all.
    """

    guidance: Guidance
    axes: int | Sequence[int] | None = 0
    cap: float = 1.0
    grows: bool = False
    _norm: Norm = field(init=False, repr=False)  # one: what has the same is held together

    def __post_init__(self) -> None:
        check_guidance("CFGNorm", self.guidance)
        axes = self.axes
        if axes is not None:
            found = (axes,) if isinstance(axes, int) else tuple(axes)
            if not found or any(isinstance(a, bool) or not isinstance(a, int) for a in found):
                raise ValueError(f"axes is {axes!r}, but it should be integers, or None for all")
        chosen = None if axes is None else found
        object.__setattr__(self, "_norm", Norm(chosen, self.cap, self.grows))
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        return Modified(self.guidance, "norm", self._norm).terms()
