"""Which submodules of a network are the layers that guidance can name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Layer:
    """One layer.

    Args:
        name: what guidance calls it.
        block: the path of the submodule that runs as a whole, and where branches may begin.
        part: the path within the block of what is meant, "" for all of it: a self-attention, say.
    """

    name: str
    block: str
    part: str = ""


def find_layers(
    net: nn.Module, layers: str | Sequence[str] = "auto", parts: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """The layers of `net`, in order.

    Args:
        layers: "auto" for the elements of all lists of blocks (`nn.ModuleList`, `nn.Sequential`)
            that lie in no other; else paths of such lists, of submodules, or patterns of paths, in
            which `*` stands for one name (`down.*.attn`), in the order in which they run.
        parts: names of the parts of a block that are layers, for blocks that have them; with none
            a block is the layer.

    Raises:
        ValueError: nothing is there.
    """
    blocks = list(_in_lists(net)) if layers == "auto" else submodules(net, layers)
    if not blocks:
        raise ValueError(
            f"layers is 'auto', but the {type(net).__name__} has no list of blocks; name the "
            "submodules that run one after the other"
        )
    modules = dict(net.named_modules())
    made: list[Layer] = []
    for path in blocks:
        here = [part for part in parts if f"{path}.{part}" in modules]
        made += [Layer(f"{path}.{part}", path, part) for part in here] or [Layer(path, path)]
    return tuple(made)


def submodules(net: nn.Module, names: str | Sequence[str]) -> list[str]:
    """The paths that `names` stand for, in order; the elements of a list for the list.

    Raises:
        ValueError: a name stands for nothing, or two paths for one within the other.
    """
    modules = dict(net.named_modules())
    blocks: list[str] = []
    for name in (names,) if isinstance(names, str) else names:
        pattern = re.compile(re.escape(name).replace(r"\*", "[^.]+"))
        found = [path for path in modules if path and pattern.fullmatch(path)]
        if not found:
            lists = dict.fromkeys(path.rpartition(".")[0] for path in _in_lists(net))
            raise ValueError(
                f"layers has {name!r}, but the {type(net).__name__} has no such submodule; its "
                f"lists of blocks are {', '.join(lists) or 'none'}"
            )
        for path in found:
            module = modules[path]
            if isinstance(module, (nn.ModuleList, nn.Sequential)):
                blocks += (f"{path}.{i}" for i in range(len(module)))
            else:
                blocks.append(path)
    return list(dict.fromkeys(blocks))


def _in_lists(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """The elements of the outermost lists whose elements are made of modules themselves."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        listed = isinstance(child, (nn.ModuleList, nn.Sequential)) and len(child) > 0
        if listed and all(next(one.children(), None) is not None for one in child.children()):
            yield from (f"{path}.{inner}" for inner, _ in child.named_children())
        else:
            yield from _in_lists(child, f"{path}.")
