"""Shallow twins of modules: what is changed in a twin is seen by whoever runs it, and by nobody
else. Parameters, hooks and everything that is not on the way to a change are those of the original.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DEPTH = 6  # how many wrappers of a forward are followed


def replaced(module: Module, changes: Mapping[str, Callable[[Any], nn.Module]]) -> Module:
    """A twin of `module` in which each submodule that `changes` names by its path is what the
    function makes of it.
    """
    children: dict[str, nn.Module] = {}
    below: dict[str, dict[str, Callable[[Any], nn.Module]]] = {}
    for path, change in changes.items():
        first, _, rest = path.partition(".")
        below.setdefault(first, {})[rest] = change
    for name, inner in below.items():
        child: Any = module._modules[name]
        deeper = {path: change for path, change in inner.items() if path}
        child = replaced(child, deeper) if deeper else child
        children[name] = inner[""](child) if "" in inner else child
    return twin(module, children)


def twin(module: Module, children: Mapping[str, nn.Module], **attributes: Any) -> Module:
    """A copy that shares all but the `children` and `attributes` given. Where its forward was
    wrapped (offloading does), the wrappers hold the twin.
    """
    made = object.__new__(type(module))
    values = {**module.__dict__, **attributes}
    values["_modules"] = {**module._modules, **children}
    values["_compiled_call_impl"] = None
    made.__dict__.update(values)
    for name, value in values.items():
        if name not in attributes and isinstance(value, (MethodType, FunctionType, partial)):
            made.__dict__[name] = _rebound(value, module, made)
    return made


def answering(module: Module, answer: Callable[..., Any]) -> Module:
    """A twin whose call is `answer(*args, **kwargs)`, without the module's own hooks."""
    return twin(module, {}, forward=answer, **{name: {} for name in _HOOKS})


def _rebound(value: Any, old: object, new: object, depth: int = _DEPTH) -> Any:
    """`value` with `new` for `old` wherever it holds it: itself where it does not."""
    if value is old:
        return new
    if depth == 0 or isinstance(value, (Tensor, nn.Module, type)):
        return value
    go = partial(_rebound, old=old, new=new, depth=depth - 1)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, new) if value.__self__ is old else value
    if isinstance(value, partial):
        return _partial(value, go)
    if isinstance(value, FunctionType):
        return _function(value, go)
    held = getattr(value, "__dict__", None)
    if not isinstance(held, dict):
        return value
    changed = {
        name: go(one)
        for name, one in held.items()
        if isinstance(one, (MethodType, FunctionType, partial))
    }
    if all(one is held[name] for name, one in changed.items()):
        return value
    other = copy.copy(value)
    other.__dict__.update(changed)
    return other


def _partial(value: Any, go: Callable[[Any], Any]) -> Any:
    func, args = go(value.func), tuple(map(go, value.args))
    keywords = {name: go(one) for name, one in value.keywords.items()}
    same = func is value.func and all(a is b for a, b in zip(args, value.args, strict=True))
    if same and all(one is value.keywords[name] for name, one in keywords.items()):
        return value
    return partial(func, *args, **keywords)


def _function(value: FunctionType, go: Callable[[Any], Any]) -> FunctionType:
    cells = value.__closure__ or ()
    held = [_contents(cell) for cell in cells]
    changed = [go(one) for one in held]
    if all(a is b for a, b in zip(held, changed, strict=True)):
        return value
    pairs = zip(cells, held, changed, strict=True)
    closure = tuple(cell if a is b else CellType(b) for cell, a, b in pairs)
    made = FunctionType(
        value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
    )
    made.__kwdefaults__ = value.__kwdefaults__
    return made


def _contents(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
