"""A named function with some of its keyword options bound: how solvers and spacings are
configured.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Generic, TypeVar

from fastguide.common.checks import check_bool, did_you_mean, is_finite, shown

Result = TypeVar("Result")


@dataclass(frozen=True)
class Configured(Generic[Result]):
    """`ddim` and `ddim(eta=1.0)` are both ready to use: calling binds options, `run` runs.

    Raises:
        TypeError: an option that the function does not have (the message lists those it has), or
            of another kind than its annotation says.
        ValueError: a number that is NaN, or too large for double precision.
    """

    function: Callable[..., Result]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # what help() and inspect show: the function's own words, and the options alone
        signature = inspect.signature(self.function)
        named = inspect.Parameter.KEYWORD_ONLY
        options = [
            one.replace(kind=named, default=self.options.get(one.name, one.default))
            for one in signature.parameters.values()
            if one.default is not inspect.Parameter.empty
        ]
        seen = inspect.Signature(options, return_annotation=signature.return_annotation)
        object.__setattr__(self, "__signature__", seen)
        about = inspect.getdoc(self.function) or ""
        object.__setattr__(self, "__doc__", f"{self.name}{seen}\n\n{about}")

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def defaults(self) -> dict[str, Any]:
        """The options there are, with the values in force."""
        parameters = inspect.signature(self.function).parameters.values()
        found = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        return {**found, **self.options}

    def __call__(self, **options: Any) -> Configured[Result]:
        unknown = sorted(set(options) - set(self.defaults))
        if unknown:
            known = ", ".join(self.defaults) or "none"
            raise TypeError(
                f"{self.name} has no option {unknown[0]!r}; its options: {known}"
                f"{did_you_mean(unknown[0], self.defaults)}"
            )
        parameters = inspect.signature(self.function).parameters
        for name, value in options.items():
            _check_kind(f"{name} of {self.name}", value, parameters[name])
        return Configured(self.function, {**self.options, **options})

    def run(self, *arguments: Any) -> Result:
        """Call the function with the bound options."""
        return self.function(*arguments, **self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        # by name: where it is found stands the configured function, not the function itself
        if "<" in self.function.__qualname__:
            raise TypeError(f"{self.name} cannot be pickled, as no module has it by its name")
        return _found, (self.function.__module__, self.function.__qualname__, dict(self.options))

    def __deepcopy__(self, memo: dict[int, Any]) -> Configured[Result]:
        return Configured(self.function, copy.deepcopy(dict(self.options), memo))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


def _check_kind(name: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raise unless `value` is of the kind that an annotation of one word names, or the default; of
    others the function knows itself.
    """
    kind = str(parameter.annotation).removesuffix(" | None")
    if kind not in ("float", "int", "bool", "str") or value is parameter.default:
        return
    if kind == "bool":
        return check_bool(name, value)
    if kind == "str":
        if not isinstance(value, str):
            raise TypeError(f"{name} is {shown(value)}, but it should be a str")
        return None
    wanted = "a number" if kind == "float" else "a whole number"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {shown(value)}, but it should be {wanted}")
    endless = kind == "float" and value in (math.inf, -math.inf)
    if not endless and (not is_finite(value) or (kind == "int" and not float(value).is_integer())):
        raise ValueError(f"{name} is {shown(value)}, but it should be {wanted}")
    return None


def _found(module: str, name: str, options: Mapping[str, Any]) -> Configured[Any]:
    """The configured function `name` of a module, with options."""
    found = getattr(importlib.import_module(module), name)
    return Configured(found.function if isinstance(found, Configured) else found, options)


def by_name(kind: str, name: str, known: Mapping[str, Configured[Result]]) -> Configured[Result]:
    """`known[name]`; `name` may carry options, as in "ddim:eta=1,other=2".

    Raises:
        ValueError: an unknown name (all are listed, and the nearest one) or an option that is no
            number.
        TypeError: an unknown option.
    """
    head, _, tail = name.partition(":")
    if head not in known:
        raise ValueError(
            f"{kind} is {head!r}, but it should be one of {', '.join(sorted(known))}"
            + did_you_mean(head, known)
        )
    options: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        key, _, text = part.partition("=")
        options[key] = _value(kind, part, text)
    return known[head](**options)


def _value(kind: str, part: str, text: str) -> float | str | bool:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        if text.isidentifier() or all(part.isdigit() for part in text.split("+")):
            return text
        raise ValueError(f"{kind} option {part!r} should be name=value") from None
