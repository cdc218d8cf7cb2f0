"""What one step of any method reports."""

from dataclasses import dataclass, field

NAN = float("nan")


@dataclass(frozen=True)
class StepRecord:
    """One optimization step in numbers. Losses and KL in nats per example; what a method does not have is nan.

    Attributes:
        step: 1, 2, ...: the steps this optimizer has taken, this one included.
        loss: mean nll on the step's batch, before the update.
        grad_norm, update_norm: Euclidean norms of the gradient and of what was added to the parameters.
        lr, damping: as used in this step.
        predicted_decrease: of the loss, by the quadratic model with the method's own Fisher: −(gᵀδ + ½ δᵀFδ).
        kl: ½ δᵀFδ with the method's own Fisher, the KL moved to second order.
        seconds: wall time of the step; `phases` splits it (pass, fisher, solve, update).
        status: "ok", or "diverged" / "failed", in which case the parameters were left alone and `message` says why.
    """

    step: int
    loss: float
    grad_norm: float = NAN
    update_norm: float = NAN
    lr: float = NAN
    damping: float = NAN
    predicted_decrease: float = NAN
    kl: float = NAN
    seconds: float = NAN
    phases: dict[str, float] = field(default_factory=dict)
    status: str = "ok"
    message: str = ""
