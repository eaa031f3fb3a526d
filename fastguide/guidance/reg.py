"""Rectified gradient guidance: each delta times the gradient of the denoised image."""

from __future__ import annotations

from dataclasses import dataclass

from fastguide.common.checks import check_bool
from fastguide.guidance.base import Factor, Guidance, Inside, Modified, Term, check_guidance
from fastguide.guidance.modifiers import Mode, Rectified


@dataclass(frozen=True, eq=False)
class REG(Guidance):
    """Rectified gradient guidance (Gao et al. 2025) of any guidance: its deltas become
    `c * delta`, elementwise, with `c = alpha d(1^T x0_hat) / dx`, x0_hat the positive's denoised
    image; the same c whatever the network predicts (for eps: `1 - sigma d(1^T eps) / dx`).

    The network is run once more, backwards, through the positive rows only. Its parameters get no
    gradient, and other rows keep no graph.

    Args:
        guidance: a guidance, such as CFG(3.0), AutoGuidance(weak, 2.0) or a sum.
        mode: "vjp" as published. "difference" keeps no graph: one more row at `x + h` gives
            `alpha (x0_hat(x + h) - x0_hat(x)) / h`, the sum over a row of the Jacobian in place of
            a column; they are equal for a true score, whose Jacobian is symmetric. "chain" is the
            chain rule without the approximation that makes a product of it: `alpha J^T delta`, J
            the Jacobian of x0_hat, one backward pass for each delta.
        every: c is computed at each `every`-th evaluation and held between.
        within: deltas are only multiplied where this schedule is not 0, e.g. interval(0.3, 2.9).
        step: h of "difference", in units of sigma; by default 0.003, or 0.1 for 16-bit networks.
        checkpoint: compute the stages' activations again in the backward pass instead of keeping
            them: less memory, one more pass of the positive rows.
    """

    guidance: Guidance
    mode: Mode = "vjp"
    every: int = 1
    within: Factor = None
    step: float | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_guidance("REG", self.guidance)
        check_bool("checkpoint", self.checkpoint)
        super().__post_init__()

    def terms(self) -> tuple[Term, ...]:
        how = Rectified(self.mode, self.every, self.within, self.step, self.checkpoint)
        return Modified(self.guidance, "rectified", how).terms()

    def inside(self) -> tuple[Inside, ...]:
        return self.guidance.inside()
