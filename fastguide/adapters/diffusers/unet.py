"""UNet2DModel in stages: `cond` is None, or class labels `[rows]`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastguide.adapters.diffusers import unet_blocks
from fastguide.adapters.diffusers.network import Adapted, Call, dtype_of
from fastguide.adapters.diffusers.unet_blocks import State, body_stages
from fastguide.staging.contract import PLAIN, TIME, Routing, Stage
from fastguide.staging.timed import timed


class UNet(Adapted):
    """See the file's first line."""

    reads = frozenset({"class_labels"})

    @property
    def null(self) -> None:
        return None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Input, embedding, every residual block and every attention."""
        told = self.net.class_embedding is not None
        return (
            Stage("conv_in", self.embed),
            Stage("time_embedding", self.condition, (TIME,), cond=told, timed=True),
            *body_stages(self.net),
            Stage("conv_out", self.head, cond=not told),
        )

    @property
    def middle(self) -> tuple[str, ...]:
        return unet_blocks.middle_of(self.stages)

    @property
    def embedders(self) -> tuple[nn.Module, ...]:
        return (self.net.time_embedding,)

    def of_times(self, t: Tensor) -> Tensor:
        """The time's part of the embedding, `[n, E]`."""
        proj = self.net.time_proj(t * self.time_scale)
        return self.net.time_embedding(proj.to(dtype_of(self.net)))

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> State:
        """The first convolution; time to its embedding."""
        x, t = inputs
        dtype = dtype_of(self.net)
        x = 2 * x - 1.0 if self.net.config.center_input_sample else x
        h = self.net.conv_in(x.to(dtype))
        return State(h, self.embedded(t), (h,))

    def condition(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> State:
        """The embedding of the time and the labels."""
        net = self.net
        embedding = state.embedding
        if net.class_embedding is not None:
            labels = net.time_proj(cond) if net.config.class_embed_type == "timestep" else cond
            if net.config.class_embed_type == "timestep":
                labels = labels.to(embedding.dtype)
            embedding = embedding + net.class_embedding(labels).to(embedding.dtype)
        return state._replace(embedding=timed(embedding, TIME, routing))

    def head(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Features to the prediction."""
        return self.net.conv_out(self.net.conv_act(self.net.conv_norm_out(state.h)))

    def conditions(self, x: Tensor, fixed: dict[str, Any], varying: dict[str, Any]) -> Call:
        return Call(x, fixed.get("class_labels"), varying)


def what_is_missing(net: Any) -> str | None:
    """Why the network cannot run in stages; None where it can."""
    if net.config.time_embedding_type == "fourier":
        return "its time embedding is 'fourier', whose output is divided by the time"
    return unet_blocks.what_is_missing(net)
