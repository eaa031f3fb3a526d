"""What is on a network's modules: whether stages still mean what the modules do, and whether
anything of it has changed.

Stages call most modules as they are, whatever they are. Others they open: they run the parts of a
block themselves. That is only right where the block is diffusers' own, with nothing on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from fastguide.adapters.diffusers.network import class_name

# of each module that stages open, the children that they open too
_OPENED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("UNet2DModel", "UNet2DConditionModel"), ("down_blocks", "mid_block", "up_blocks")
    ),
    **dict.fromkeys(
        (
            *("CrossAttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D", "UNetMidBlock2D"),
            *("UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        ),
        ("attentions",),
    ),
    "Transformer2DModel": ("transformer_blocks",),
    "BasicTransformerBlock": ("attn1", "attn2"),
    "DiTTransformer2DModel": ("transformer_blocks",),
    "AdaLayerNormZero": ("emb",),
    "PixArtTransformer2DModel": ("transformer_blocks", "adaln_single"),
    "AdaLayerNormSingle": ("emb",),
    "SanaTransformer2DModel": ("transformer_blocks", "time_embed", "norm_out"),
    "SanaTransformerBlock": ("attn1", "attn2"),
    "SD3Transformer2DModel": ("transformer_blocks", "time_text_embed"),
    "JointTransformerBlock": ("attn", "attn2"),
    "FluxTransformer2DModel": (
        "transformer_blocks",
        "single_transformer_blocks",
        "time_text_embed",
    ),
    "FluxTransformerBlock": ("attn",),
    "FluxSingleTransformerBlock": ("attn",),
    **dict.fromkeys(
        (
            *("Attention", "FluxAttention", "CombinedTimestepLabelEmbeddings"),
            *("PixArtAlphaCombinedTimestepSizeEmbeddings", "SanaModulatedNorm"),
            *("SanaCombinedTimestepGuidanceEmbeddings", "CombinedTimestepTextProjEmbeddings"),
            "CombinedTimestepGuidanceTextProjEmbeddings",
        ),
        (),
    ),
}
_PLAIN_PROCESSORS = {
    *("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor"),
    *("IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0"),
    *("JointAttnProcessor2_0", "XFormersJointAttnProcessor"),
    *("FluxAttnProcessor", "SanaLinearAttnProcessor2_0", "SanaAttnProcessor2_0"),
}
_FREE_U = ("s1", "s2", "b1", "b2")


def what_is_on(net: nn.Module) -> str | None:
    """Why stages would pass by something that is on the modules; None where they would not."""
    for module in _modules(net):
        known = module.__dict__
        what = None
        if known.get("_forward_hooks") or known.get("_forward_pre_hooks"):
            what = "a forward hook is on"
        elif "forward" in known:
            what = "another forward is set on"
        elif known.get("_compiled_call_impl") is not None:
            what = "torch.compile was called on"
        if what is not None:
            return f"{what} {_name_of(module, net)}"
    return _what_is_opened(net)


def _what_is_opened(net: nn.Module) -> str | None:
    for module in _opened(net):
        kind = class_name(module)
        if kind not in _OPENED or not _is_own(type(module).forward):
            return f"{_name_of(module, net)} is a {type(module).__name__}"
        processor = getattr(module, "processor", None)
        why = None if processor is None else _what_processes(processor)
        if why is not None:
            return f"{why}, on {_name_of(module, net)}"
        if getattr(module, "fused_projections", False):
            return f"the projections of {_name_of(module, net)} are fused"
    return None


def _what_processes(processor: Any) -> str | None:
    kind = type(processor)
    if kind.__name__ not in _PLAIN_PROCESSORS or not _is_own(kind.__call__):
        return f"it has the attention processor {kind.__name__}"
    if getattr(processor, "_attention_backend", None) is not None:
        return f"it has the attention backend {processor._attention_backend}"
    if any(isinstance(scale, list) for scale in getattr(processor, "scale", ())):
        return "it has an IP-Adapter with a scale for each image"
    return None


def _is_own(function: Any) -> bool:
    return str(function.__module__).startswith("diffusers.")


def _opened(net: nn.Module) -> Iterator[nn.Module]:
    """The modules that stages open, as far as they are known."""
    stack = [net]
    while stack:
        module = stack.pop()
        yield module
        for name in _OPENED.get(class_name(module), ()):
            child = module._modules.get(name)
            if isinstance(child, nn.ModuleList):
                stack.extend(one for one in child if one is not None)
            elif child is not None:
                stack.append(child)


def _modules(net: nn.Module) -> Iterator[nn.Module]:
    """All modules: `net.modules()` in a third of its time, those in two places twice."""
    stack = [net]
    while stack:
        module = stack.pop()
        yield module
        stack.extend(one for one in module._modules.values() if one is not None)


def _name_of(module: nn.Module, net: nn.Module) -> str:
    kind = type(module).__name__
    found = next((name for name, one in net.named_modules() if one is module), "")
    return f"{found} ({kind})" if found else f"the {kind} itself"


def structure(net: nn.Module) -> tuple[Any, ...]:
    """What stages are made from: the modules, and what each is."""
    found: list[Any] = []
    for module in _modules(net):
        found += (module, type(module))
    return tuple(found)


class State:
    """What a network computes with, to be compared: its modules, what is on them, its weights and
    their versions, adapters and their scales.
    """

    def __init__(self, net: nn.Module) -> None:
        found: list[Any] = []
        self.held: list[Any] = []  # so that no address is used again
        for module in _modules(net):
            known = module.__dict__
            hooks = (known.get("_forward_hooks"), known.get("_forward_pre_hooks"))
            found += (module, type(module), known.get("forward"), known.get("processor"))
            found += (tuple(one) for one in hooks if one)
            for parameter in known.get("_parameters", {}).values():
                if parameter is not None:
                    self.held.append(parameter)
                    version = 0 if parameter.is_inference() else parameter._version
                    found += (id(parameter), version)
            if "scaling" in known:  # a layer of peft's
                found += (dict(known["scaling"]), tuple(known.get("merged_adapters", ())))
                found += (known.get("_disable_adapters"), tuple(module.active_adapters))  # type: ignore[arg-type]
            found += (known[name] for name in _FREE_U if name in known)
        self.found = found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self.found == other.found

    __hash__ = None  # type: ignore[assignment]


def keeps_state(net: nn.Module) -> bool:
    """Whether something on the network remembers its last calls (`enable_cache`)."""
    for module in _modules(net):
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None and any(one._is_stateful for one in registry.hooks.values()):
            return True
    return False
