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
        predicted_decrease: of the objective (the loss, and the l2 term where there is one), by the quadratic model with the
            method's own Fisher and without damping: −(gᵀδ + ½ δᵀFδ).
        kl: ½ δᵀFδ with the method's own Fisher, the KL moved to second order. It is the newest Fisher, also where the inverse
            that made δ is of an older one.
        seconds: wall time of the step; `phases` splits it (pass, fisher, solve, update).
        status: "ok", or "diverged" / "failed", in which case the parameters were left alone and `message` says why.
        actual_decrease: of the objective on the step's own batch, before minus after; where it was computed.
        rho: actual change over the change that the damped quadratic model M predicted; where it was computed.
        gamma: γ, what K-FAC's factored damping used in place of √λ.
        alpha, mu: coefficients of the new direction and of the last update in this one.
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
    actual_decrease: float = NAN
    rho: float = NAN
    gamma: float = NAN
    alpha: float = NAN
    mu: float = NAN
