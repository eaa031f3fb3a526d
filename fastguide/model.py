"""A model is a network together with what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastguide.common.arguments import answering_class
from fastguide.common.arrays import as_device, as_dtype
from fastguide.common.checks import check_bool, check_int, shown
from fastguide.process import Noising, Prediction
from fastguide.staging.modules import ByModules

Net = Callable[[Tensor, Tensor, Any], Tensor]


@answering_class
@dataclass(frozen=True)
class Model:
    """A network and the meaning of what goes in and out of it.

    Args:
        net: any callable `net(x, t, cond)`: x `[rows, *shape]`, t fp32 `[rows]` in the network's
            own units (VP: timestep; flow: time; edm: log(sigma) / 4), cond a pytree of batch-first
            tensors or None. Returns `[rows, heads * C, ...]`. It must not write to its input.
        process: the noise process it was trained on.
        prediction: what it returns.
        shape: one sample without the batch, e.g. (C, H, W).
        null: the condition that means "none", in the form of `cond` for ONE sample without the
            batch dimension (an int for class labels), or None for an unconditional network.
        heads: predictions in one output, as consecutive slices of its channels.
        negative: whether the second head predicts for a second, negative condition; `cond` is then
            the pair (cond, negative).
        variance: whether the network returns 2 C channels, the second half a variance per element
            in [-1, 1] (ADM, DiT-XL/2): what `ddpm(variance="learned")` reads.
        class_names: names of the class labels, where the condition is one.
        usual: how a run of so many steps usually is, a `fastguide.sampling.course.Usual`; None for
            the process's usual spacing and DDIM.
        layers: for a network without stages of its own whose layers guidance should reach, which of
            its submodules they are: a list of blocks ("blocks"), several, or "auto". `net` is then
            `fg.ByModules(net, layers)`, which has further settings.
        source: what it was loaded from: the name of a bundled model, or a folder.
    """

    net: Net
    process: Noising
    prediction: Prediction
    shape: tuple[int, ...]
    null: Any = None
    heads: int = 1
    negative: bool = False
    class_names: tuple[str, ...] = ()
    variance: bool = False
    usual: Callable[[int], Any] | None = None
    layers: str | Sequence[str] | None = None
    source: str = field(default="", compare=False)

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | str | None = None
    ) -> Model:
        """The model itself, its network moved to a device or cast to fp32, bf16 or fp16, as
        `torch.nn.Module.to` does it: in place.

        Raises:
            TypeError: net is no `torch.nn.Module`.
            ValueError: there is no such device or dtype.

        Example:
            >>> fastguide.load("fashion").to("cpu", "bf16")
        """
        if not isinstance(self.net, nn.Module):
            raise TypeError(f"net is {shown(self.net)}, but only a torch.nn.Module can be moved")
        if device is not None:
            self.net.to(as_device(device))
        if dtype is not None:
            self.net.to(as_dtype(dtype))
        return self

    @property
    def parameter(self) -> Tensor | None:
        """A floating-point parameter of the network, which has its device and dtype; None where it
        has none.
        """
        if not isinstance(self.net, nn.Module):
            return None
        return next((p for p in self.net.parameters() if p.is_floating_point()), None)

    @property
    def outputs(self) -> int:
        """How many times C channels the network returns."""
        return 2 if self.variance else self.heads

    def __post_init__(self) -> None:
        if self.layers is not None and not isinstance(self.net, ByModules):
            object.__setattr__(self, "net", ByModules(self.net, self.layers))
        if not callable(self.net):
            raise TypeError(f"net is {self.net!r}, but it should be a callable net(x, t, cond)")
        if not isinstance(self.process, Noising):
            raise TypeError(
                f"process is {shown(self.process)}, but it should be a VP, EDM, Flow or "
                "ContinuousVP"
            )
        named: Any = self.prediction
        if isinstance(named, str):
            object.__setattr__(self, "prediction", Prediction(named))  # type: ignore[arg-type]
        if not isinstance(self.prediction, Prediction):
            raise TypeError(
                f"prediction is {shown(self.prediction)}, but it should be a Prediction such as "
                "Prediction('eps')"
            )
        if not isinstance(self.shape, (tuple, list)):
            raise TypeError(f"shape is {shown(self.shape)}, but it should be a tuple (C, H, W)")
        if not self.shape:
            raise ValueError(f"shape is {self.shape}, but it should have a side")
        for i, side in enumerate(self.shape):
            check_int(f"shape[{i}]", side)
        check_int("heads", self.heads, 1, 2)
        check_bool("negative", self.negative)
        check_bool("variance", self.variance)
        if not isinstance(self.class_names, (tuple, list)) or any(
            not isinstance(name, str) for name in self.class_names
        ):
            raise TypeError(f"class_names is {shown(self.class_names)}, but it should be strings")
        if self.usual is not None and not callable(self.usual):
            raise TypeError(f"usual is {shown(self.usual)}, but it should be a function of steps")
        if self.negative and self.heads != 2:
            raise ValueError("negative is True, but a negative condition needs heads=2")
        if self.variance and self.heads != 1:
            raise ValueError(f"variance is True with heads {self.heads}, but it needs heads=1")
