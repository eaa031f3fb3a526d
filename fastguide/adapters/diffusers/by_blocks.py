"""Any other network of diffusers, run by its own forward and staged by its modules."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastguide.adapters.diffusers.blocks import blocks_of, modules_of
from fastguide.adapters.diffusers.network import Adapted
from fastguide.adapters.diffusers.whole import Whole
from fastguide.staging.contract import Stage, is_compiled
from fastguide.staging.grid import grid_of


class ByBlocks(Whole):
    """A `Whole` whose layers guidance can reach."""

    def __init__(
        self,
        net: Any,
        time_scale: float,
        why_not_staged: str,
        layout: Adapted | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(net, time_scale, why_not_staged, layout)
        self.modules_of_net = modules_of(self, net, "net", grid=self.grid, **settings)

    def of_run(self) -> ByBlocks:
        found = super().of_run()
        assert isinstance(found, ByBlocks)
        found.modules_of_net = self.modules_of_net.of(found, found.grid)
        return found

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.modules_of_net.stages

    @property
    def middle(self) -> tuple[str, ...]:
        return self.modules_of_net.middle

    def grid(self, tokens: int, sample: tuple[int, ...]) -> tuple[int, ...]:
        """How an image's tokens lie; of packed latents `(N, C)` by what the pipeline says of them
        (`img_shapes`, `img_ids`, `position_ids`, or frames, height and width).
        """
        if len(sample) == 4 and self.told.frames_first:
            sample = (sample[1], sample[0], *sample[2:])
        if len(sample) != 2:
            return grid_of(tokens, sample)
        told = self.static
        if "img_shapes" in told:
            first = told["img_shapes"][0]
            frames, height, width = first[0] if isinstance(first, (list, tuple)) else first
        elif told.get("height") is not None and told.get("width") is not None:
            frames, height, width = told.get("num_frames") or 1, told["height"], told["width"]
        elif isinstance(told.get("img_ids"), Tensor):
            ids = told["img_ids"].reshape(-1, told["img_ids"].shape[-1])[:tokens]
            frames, (height, width) = 1, (int(side) + 1 for side in ids[-1][1:3].tolist())
        elif isinstance(told.get("position_ids"), Tensor) and told["position_ids"].ndim == 2:
            last = told["position_ids"][-1]  # of text and image, the image's last
            frames, (height, width) = 1, (int(side) + 1 for side in last[1:3].tolist())
        else:
            frames, height, width = 0, 0, 0
        if frames * height * width != tokens:
            raise ValueError(
                f"the pipeline's latents are packed as {sample}, and how their {tokens} tokens lie "
                "is not known; sigma=inf needs no grid"
            )
        return (height, width) if frames == 1 else (frames, height, width)


def whole(net: Any, time_scale: float, why_not_staged: str, layout: Adapted | None = None) -> Whole:
    """The network by its modules, where it is made of blocks and was not compiled as one piece;
    else as one.
    """
    if is_compiled(net):
        why = f"{why_not_staged}, and it was compiled as one piece"
        return Whole(net, time_scale, why, layout)
    try:
        return ByBlocks(net, time_scale, why_not_staged, layout)
    except ValueError as error:
        return Whole(net, time_scale, f"{why_not_staged}; {error}", layout)


def time_scale_of(net: Any, time_scale: float) -> float:
    """What our t is multiplied with for the network: 1 where it runs backwards, from 0 to 1."""
    told = blocks_of(net)
    times = getattr(net.config, told.times) if isinstance(told.times, str) else told.times
    return 1.0 if told.backwards else time_scale * float(times)
