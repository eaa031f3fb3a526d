"""UNet2DConditionModel in stages: Stable Diffusion 1 and 2, SDXL, ControlNet, IP-Adapter.

`cond` is the text `[rows, T, D]`, or a dict of "text" and, where the network has them, "mask"
`[rows, T]`, "text_embeds" and "time_ids" (SDXL), "image_embeds" (IP-Adapter, a list), "labels",
"timestep_cond"; "down" (a tuple) and "mid" are a ControlNet's residuals, "extra" further input
channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastguide.adapters.diffusers import unet_blocks
from fastguide.adapters.diffusers.attention import bias_of
from fastguide.adapters.diffusers.network import Adapted, Call, NotUnderstood, dtype_of
from fastguide.adapters.diffusers.unet_blocks import State, body_stages, cross_key_values
from fastguide.staging.contract import PLAIN, TIME, Routing, Stage
from fastguide.staging.timed import timed

_NAMES = {
    "encoder_hidden_states": "text",
    "encoder_attention_mask": "mask",
    "class_labels": "labels",
    "timestep_cond": "timestep_cond",
    "down_block_additional_residuals": "down",
    "mid_block_additional_residual": "mid",
}


class UNetCondition(Adapted):
    """See the file's first lines."""

    reads = frozenset({*_NAMES, "added_cond_kwargs"})
    changes = frozenset({"down_block_additional_residuals", "mid_block_additional_residual"})

    def __init__(self, net: Any, time_scale: float = 1.0) -> None:
        super().__init__(net, time_scale)
        config = self.net.config
        self.channels = config.out_channels
        self.extra = config.in_channels != config.out_channels
        self.tells_time = config.time_cond_proj_dim is not None  # of the guidance's scale

    @property
    def outputs(self) -> int:
        return 1

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Input, embedding, every residual block and both halves of every transformer block."""
        net = self.net
        told = net.add_embedding is not None if hasattr(net, "add_embedding") else False
        told = told or net.class_embedding is not None
        told = told or self.tells_time
        return (
            Stage("conv_in", self.embed, cond=self.extra),
            Stage("time_embedding", self.condition, (TIME,), cond=told, timed=True),
            *body_stages(
                net,
                [Stage("control.down", self.control_down, cond=True)],
                [Stage("control.mid", self.control_mid, cond=True)],
                self.read,
            ),
            Stage("conv_out", self.head),
        )

    @property
    def middle(self) -> tuple[str, ...]:
        return unet_blocks.middle_of(self.stages)

    @property
    def embedders(self) -> tuple[nn.Module, ...]:
        return (self.net.time_embedding,)

    def of_times(self, t: Tensor) -> Tensor:
        """The time's embedding `[n, E]`; where it is told more before that, its input."""
        proj = self.net.time_proj(t * self.time_scale).to(dtype_of(self.net))
        return proj if self.tells_time else self.net.time_embedding(proj)

    def embed(
        self, inputs: tuple[Tensor, Tensor], cond: Any = None, routing: Routing = PLAIN
    ) -> State:
        """The first convolution; time to its embedding."""
        x, t = inputs
        dtype = dtype_of(self.net)
        if self.extra:
            x = torch.cat([x, cond["extra"].to(x.dtype)], 1)
        if self.net.config.center_input_sample:
            x = 2 * x - 1.0
        h = self.net.conv_in(x.to(dtype))
        return State(h, self.embedded(t), (h,))

    def condition(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> State:
        """The embedding of the time, and of what is told beside the text."""
        net, cond = self.net, _as_dict(cond)
        embedding = state.embedding
        if self.tells_time:
            embedding = net.time_embedding(embedding, cond.get("timestep_cond"))
        if net.class_embedding is not None:
            labels = net.get_class_embed(sample=state.h, class_labels=cond["labels"])
            if net.config.class_embeddings_concat:
                embedding = torch.cat([embedding, labels], -1)
            else:
                embedding = embedding + labels
        added = cond["added"] if "added" in cond else self._added(cond)
        if added is not None:
            embedding = embedding + added
        embedding = timed(embedding, TIME, routing)
        if net.time_embed_act is not None:
            embedding = net.time_embed_act(embedding)
        return state._replace(embedding=embedding)

    def control_down(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> State:
        """Add a ControlNet's residuals to what was laid aside."""
        if not isinstance(cond, dict) or "down" not in cond:
            return state
        skips = tuple(a + b for a, b in zip(state.skips, cond["down"], strict=True))
        return state._replace(skips=skips)

    def control_mid(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> State:
        """Add a ControlNet's residual to the middle."""
        if not isinstance(cond, dict) or "mid" not in cond:
            return state
        return state._replace(h=state.h + cond["mid"])

    def head(self, state: State, cond: Any = None, routing: Routing = PLAIN) -> Tensor:
        """Features to the prediction."""
        h = state.h
        if self.net.conv_norm_out is not None:
            h = self.net.conv_act(self.net.conv_norm_out(h))
        return self.net.conv_out(h)

    def conditions(self, x: Tensor, fixed: dict[str, Any], varying: dict[str, Any]) -> Call:
        added = fixed.pop("added_cond_kwargs", {})
        cond = {_NAMES[name]: value for name, value in fixed.items()}
        known = {"text_embeds", "time_ids", "image_embeds"}
        if set(added) - known:
            raise NotUnderstood(f"added_cond_kwargs has {sorted(added)}, but stages know {known}")
        cond |= {name: value for name, value in added.items() if value is not None}
        new = {_NAMES[name]: value for name, value in varying.items()}
        if ("down" in new) != ("mid" in new):
            raise NotUnderstood("the pipeline gives it residuals of a T2I-Adapter")
        if "down" in new:
            new["down"] = tuple(new["down"])
        if self.extra:
            x, new["extra"] = x[:, : self.channels], x[:, self.channels :]
        return Call(x, cond, new)

    def prepare(self, cond: Any) -> Any:
        """Keys and values of all cross-attentions; what is added to the time embedding."""
        cond = dict(_as_dict(cond))
        if "kv" in cond:
            return cond
        added = self._added(cond)
        if added is not None:
            cond["added"] = added
        text, images = self._text(cond.pop("text"), cond.pop("image_embeds", None))
        bias = bias_of(cond.pop("mask", None), text.dtype)
        if bias is not None:
            cond["bias"] = bias
        cond["kv"] = {
            name: cross_key_values(module, text, images)
            for name, module in self.net.named_modules()
            if name.endswith(".attn2")
        }
        return {k: v for k, v in cond.items() if k not in ("text_embeds", "time_ids")}

    def read(self, attn: Any, name: str, cond: Any) -> Any:
        """What one cross-attention reads (`unet_blocks.Read`)."""
        cond = _as_dict(cond)
        if "kv" in cond:
            return cond["kv"][name], cond.get("bias")
        text, images = self._text(cond["text"], cond.get("image_embeds"))
        return cross_key_values(attn, text, images), bias_of(cond.get("mask"), text.dtype)

    def _text(
        self, text: Tensor, images: Sequence[Tensor] | None
    ) -> tuple[Tensor, Sequence[Tensor]]:
        net = self.net
        kind = net.config.encoder_hid_dim_type
        if kind == "text_proj":
            text = net.encoder_hid_proj(text)
        if kind != "ip_image_proj":
            return text, []
        if images is None:
            raise ValueError("cond has no 'image_embeds', but the network has an IP-Adapter")
        if getattr(net, "text_encoder_hid_proj", None) is not None:
            text = net.text_encoder_hid_proj(text)
        return text, net.encoder_hid_proj(images)

    def _added(self, cond: dict[str, Any]) -> Tensor | None:
        net = self.net
        kind = net.config.addition_embed_type
        if kind == "text":
            return net.add_embedding(cond["text"])
        if kind != "text_time":
            return None
        pooled, ids = cond["text_embeds"], cond["time_ids"]
        sizes = net.add_time_proj(ids.flatten()).reshape(pooled.shape[0], -1)
        both = torch.cat([pooled, sizes.to(pooled.dtype)], -1)
        return net.add_embedding(both.to(dtype_of(net)))


def _as_dict(cond: Any) -> dict[str, Any]:
    if isinstance(cond, Tensor):
        return {"text": cond}
    return cond if cond is not None else {}


def what_is_missing(net: Any) -> str | None:
    """Why the network cannot run in stages; None where it can."""
    if net.config.addition_embed_type not in (None, "text", "text_time"):
        return f"its addition_embed_type is {net.config.addition_embed_type!r}"
    if net.config.encoder_hid_dim_type not in (None, "text_proj", "ip_image_proj"):
        return f"its encoder_hid_dim_type is {net.config.encoder_hid_dim_type!r}"
    return unet_blocks.what_is_missing(net)
