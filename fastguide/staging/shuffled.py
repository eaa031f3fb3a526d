"""The order of the tokens that chosen rows of a layer see."""

from __future__ import annotations

import zlib

from torch import Tensor

from fastguide import ops
from fastguide.staging.contract import Routing, Segment
from fastguide.staging.perturbation import Shuffled


def shuffled(tokens: Tensor, layer: str, routing: Routing) -> Tensor:
    """`tokens` `[rows, N, width]`, permuted in the rows where `routing` shuffles the input of
    `layer`: sample i by its own seed and the layer's name alone.
    """

    def permuted(rows: Tensor, segment: Segment) -> Tensor:
        assert routing.seeds is not None
        order = ops.noise(routing.seeds, rows.shape[1:2], _stream(layer)).argsort(1)
        column = order.repeat(segment.stop - segment.start, 1).unsqueeze(2)
        return rows.gather(1, column.expand_as(rows))

    return routing.changed(tokens, layer, Shuffled, permuted)


def _stream(layer: str) -> int:
    """Which of a sample's random numbers the layer draws."""
    return zlib.crc32(layer.encode())


# what torch.compiler.assume_constant_result does, which would import the whole compiler here
_stream._dynamo_marked_constant = True  # type: ignore[attr-defined]
