"""How plain gradient flow learns a deep linear network: mode by mode, with plateaus. The contrast to natural gradient flow."""

import torch

from natgrad_lab.deep_linear.ode import integrate
from natgrad_lab.shapes import Float, Tensor


def saxe(
    singular_values: Float[Tensor, " M"],
    initial: Float[Tensor, " M"] | float,
    times: Float[Tensor, " T"],
    *,
    num_layers: int = 2,
) -> Float[Tensor, "T M"]:
    """Strengths u(t) of the network's modes under gradient flow dW_i/dt = −∇_i: du/dt = L u^(2 − 2/L) (s − u).

    Exact for white inputs (E[xxᵀ] = I), the loss ½ E‖y − f‖², E[yxᵀ] = U diag(s) Vᵀ, and weights that begin aligned with these
    modes and balanced, every layer with the strengths u^(1/L) (no interaction of modes then arises). Each mode waits about
    log(s/u₀) / 2s (two layers), longer the smaller s is; natural gradient flow gives du/dt = s − u for all of them.

    Closed forms for one and two layers; more by integrating this equation, each step to a relative error of 1e-9.

    Args:
        singular_values: s ≥ 0, of E[yxᵀ].
        initial: u(0) ≥ 0, one for all modes or one each. A mode that begins at 0 stays there (two layers or more).
        times: from 0, ascending.
        num_layers: L, the number of weight matrices.
    Raises: ValueError for negative strengths or times that descend.
    References: [Saxe2014] sec. 1 (time there is in units of τ, 1 here).
    """
    times, s = _checked(singular_values, times, num_layers)
    start = torch.as_tensor(initial, dtype=torch.float64, device=s.device).expand_as(s)
    if not (torch.isfinite(start).all() and (start >= 0).all()):
        raise ValueError(f"initial must hold finite numbers >= 0, the strengths of the modes at time 0; got {initial}.")
    solutions = {1: _one_layer, 2: _two_layers}
    strengths = solutions[num_layers](s, start, times) if num_layers in solutions else _stepped(s, start, times, num_layers)
    return strengths.to(singular_values.dtype)


def _checked(singular_values: Tensor, times: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    if not isinstance(num_layers, int) or num_layers < 1:
        raise ValueError(f"num_layers must be a positive integer; got {num_layers!r}.")
    s = singular_values.detach().double()
    if not (torch.isfinite(s).all() and (s >= 0).all()):
        raise ValueError("singular_values must be finite and >= 0; flip the sign of a singular vector if one is negative.")
    return checked_times(times), s


def checked_times(times: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Times in float64, or an error: they must be finite, not negative and ascending."""
    times = times.detach().double()
    if not len(times) or not torch.isfinite(times).all() or times[0] < 0 or (times.diff() < 0).any():
        raise ValueError("times must be one or more finite numbers >= 0 in ascending order, as torch.linspace(0, 3, 31).")
    return times


def _one_layer(s: Tensor, start: Tensor, times: Tensor) -> Tensor:
    return s + (start - s) * torch.exp(-times)[:, None]


def _two_layers(s: Tensor, start: Tensor, times: Tensor) -> Tensor:
    """u = s / (1 + (s/u₀ − 1) e^(−2st)), written with (1 − e^(−2st)) / s, which is 2t at s = 0."""
    doubled = 2 * s * times[:, None]
    grown = torch.where(s > 0, -torch.expm1(-doubled) / s.clamp_min(torch.finfo(s.dtype).tiny), 2 * times[:, None])
    return torch.where(start > 0, start / (torch.exp(-doubled) + start * grown), 0.0)


def _stepped(s: Tensor, start: Tensor, times: Tensor, num_layers: int) -> Tensor:
    """In log u, whose errors are relative ones of u: d log u / dt = L u^(1 − 2/L) (s − u)."""
    learns = start > 0

    def speed(log_u: Tensor) -> Tensor:
        u = log_u.exp()
        return num_layers * u ** (1 - 2 / num_layers) * (s[learns] - u)

    reached, _ = integrate(speed, start[learns].log(), times.tolist())
    strengths = torch.zeros(len(times), len(s), dtype=s.dtype, device=s.device)
    strengths[:, learns] = torch.stack(reached).exp()
    return strengths
