"""Modules as they were written, for a layer whose attention is to be met: without what compiles
them, and where a processor of diffusers dispatches to some backend, with PyTorch's own.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

from fastguide.staging.twin import replaced, twin

Module = TypeVar("Module", bound=nn.Module)

_DISPATCH = "diffusers.models.attention_dispatch"


def native(module: Module) -> Module:
    """`module` itself, or a twin in which parts are replaced where that is needed."""
    changes: dict[str, Callable[[Any], nn.Module]] = {}
    for name, part in module.named_modules():
        if "_orig_mod" in part._modules:
            changes[name] = lambda compiled: compiled._modules["_orig_mod"]
        elif part._compiled_call_impl is not None:
            changes[name] = lambda compiled: twin(compiled, {})
        elif _dispatches(getattr(part, "processor", None)):
            changes[name] = _by_pytorch
    own = changes.pop("", None)
    found = replaced(module, changes) if changes else module
    return found if own is None else cast(Module, own(found))


def _dispatches(processor: Any) -> bool:
    """Whether it asks a backend that is not PyTorch's."""
    dispatch = sys.modules.get(_DISPATCH)
    if dispatch is None or not hasattr(processor, "_attention_backend"):
        return False
    backend = processor._attention_backend
    if backend is None:
        backend = dispatch._AttentionBackendRegistry.get_active_backend()[0]
    return bool(backend != dispatch.AttentionBackendName.NATIVE)


def _by_pytorch(module: Any) -> nn.Module:
    processor = copy.copy(module.processor)
    processor._attention_backend = sys.modules[_DISPATCH].AttentionBackendName.NATIVE
    if isinstance(processor, nn.Module):
        return twin(module, {"processor": processor})
    return twin(module, {}, processor=processor)
