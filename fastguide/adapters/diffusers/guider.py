"""A component of diffusers' modular pipelines that guides with ours: `Guider(guidance)`.

The pipeline's loop asks a guider for its conditions, calls the network with each, and gives it the
predictions. Ours stands around those calls of the network: the last one returns what all branches
of the guidance make of the latents, which it hands on. Scheduler, loop and whatever they do beside
stay the pipeline's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor, nn

from fastguide.adapters.diffusers.asked import Asked, Step
from fastguide.guidance.base import Guidance
from fastguide.guidance.described import described, guidance_of
from fastguide.process import Prediction


class Guider(BaseGuidance):
    """Guides with `guidance`: `pipe.update_components(guider=fg.Guider(fg.CFG(5.0)))`.

    Args:
        guidance: a guidance or a sum of them, of data alone: it is saved and loaded with the
            pipeline. What it is described by (`fastguide.guidance.described`) serves too.
        prediction: what the network predicts, "flow", "eps" or "v": of a flow, or of the usual
            "scaled_linear" noise. Schedules and norms of the denoised image read it.
    """

    _input_predictions: Any = ["pred_cond", "pred_uncond"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        guidance: Guidance | Mapping[str, Any],
        prediction: str = "flow",
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        found = guidance if isinstance(guidance, Guidance) else guidance_of(guidance)
        self.guidance, self.prediction = found, Prediction(prediction)  # type: ignore[arg-type]
        self.register_to_config(guidance=described(found))
        self._asked = Asked(found, self.prediction)
        self._now: Step | None = None

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Begin a step."""
        super().set_state(step, num_inference_steps, timestep)
        share = range(int(self._start * num_inference_steps), int(self._stop * num_inference_steps))
        on = self._enabled and step in share
        self._now = self._asked.step(step, num_inference_steps, float(timestep), on)

    @property
    def num_conditions(self) -> int:
        """2 where negative rows are needed: at this step; outside of one, at any."""
        if not self._enabled:
            return 1
        needed = self._asked.needs_negative if self._now is None else self._now.needs_negative
        return 2 if needed else 1

    @property
    def is_conditional(self) -> bool:
        """Whether the network is called under the positive condition."""
        return self._count_prepared == 1

    def prepare_inputs(self, data: Any) -> list[Any]:
        """The conditions of this step's calls."""
        names = self._input_predictions[: self.num_conditions]
        return [self._prepare_batch(data, i, name) for i, name in enumerate(names)]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        """The same, of a block's state."""
        names = enumerate(self._input_predictions[: self.num_conditions])
        return [
            self._prepare_batch_from_block_state(input_fields, data, i, name) for i, name in names
        ]

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Stand around the network's next call."""
        super().prepare_models(denoiser)
        now = self._now
        if now is None:
            raise RuntimeError("prepare_models came before set_state")
        now.stand_around(denoiser, last=self._count_prepared == self.num_conditions)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Leave the network as it was."""
        if self._now is not None:
            self._now.leave(denoiser)

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """What the last call returned, which is guided already."""
        self._now = None  # a later run's encoders ask whether negative rows are needed at all
        guided = pred_cond if pred_uncond is None else pred_uncond
        return GuiderOutput(pred=guided, pred_cond=pred_cond, pred_uncond=None)
