"""The natural gradient flow dW_i/dt = −v_i of a deep linear network: its trajectory, its rate, and where it ends too soon."""

import math
import warnings
from dataclasses import dataclass

import torch

from natgrad_lab.deep_linear.closed_form import exact_shares, factored
from natgrad_lab.deep_linear.gradient_flow import checked_times
from natgrad_lab.deep_linear.network import Regression, Weights, chain, checked_layers, regression
from natgrad_lab.deep_linear.ode import integrate
from natgrad_lab.errors import NumericalWarning
from natgrad_lab.linalg import zero_level
from natgrad_lab.shapes import Float, Tensor


@dataclass(frozen=True)
class Flow:
    """A trajectory of the natural gradient flow.

    Attributes:
        times: (T,) those reached, before the breakdown if there is one.
        weights: the layers at each time.
        excess_losses: (T,) ½‖E‖² of these weights, the loss above that of the best linear map.
        predicted: (T,) e^(−2t) times the first; nan where the weights do not reach every change of the function.
        breakdown: the time at which the flow ends, inf if it does not.
    """

    times: Float[Tensor, " T"]
    weights: tuple[tuple[Tensor, ...], ...]
    excess_losses: Float[Tensor, " T"]
    predicted: Float[Tensor, " T"]
    breakdown: float


@dataclass(frozen=True)
class Rate:
    """How fast natural gradient learns a deep linear network, as theory has it.

    Attributes:
        slope: d log(excess loss) / dt: −2 for the flow; for steps of length lr, per unit of time lr, 2 log|1 − lr| / lr, which
            the excess reaches as E → 0 (from the first step on with one layer). nan if not `onto`.
        onto: whether every change of the function is in reach, what all of this rests on.
        breakdown: the time at which the flow ends, inf if none is foreseen.
        excess_loss: now.
    """

    slope: float
    onto: bool
    breakdown: float
    excess_loss: float


def rate(
    weights: Weights,
    inputs: Tensor,
    targets: Tensor,
    *,
    lr: float = 0.0,
    output_covariance: Tensor | None = None,
) -> Rate:
    """The predicted rate: E(t) = e^(−t) E(0), so that the excess loss falls as e^(−2t).

    Holds whatever depth, widths, data and weights, while the weights reach every change of the function (`onto`), and for
    every solution of F v = g alike. A step of length lr leaves (1 − lr) E + O(lr² ‖E‖²). Undamped block-diagonal K-FAC
    is L times as fast, lr in place of lr / L: stable below lr = 2 / L only.

    Args: lr: of discrete steps; 0 is the flow. The rest as `natural_gradient`.
    References: [Bernacchia2018]; the constants are derived here.
    """
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be a finite number >= 0 (0 is the flow); got {lr}.")
    layers = checked_layers(weights, inputs, targets)
    problem = regression(layers, inputs, targets, output_covariance)
    layers = [layer.double() for layer in layers]
    net = factored(chain(layers, problem), problem.eps)
    slope = -2.0 if lr == 0 else 2 * math.log(abs(1 - lr)) / lr if lr != 1 else -math.inf
    end = breakdown_time(layers, problem) if net.onto else math.inf
    return Rate(slope if net.onto else math.nan, net.onto, end, float(net.chain.excess()))


def flow(
    weights: Weights,
    inputs: Tensor,
    targets: Tensor,
    times: Float[Tensor, " T"],
    *,
    output_covariance: Tensor | None = None,
) -> Flow:
    """The weights under dW_i/dt = −v_i with v the natural gradient (formula "exact"), at the given times.

    While the weights reach every change of the function, the function moves on a straight line, W(t) = W* + e^(−t) (W(0) − W*),
    and the excess loss falls as e^(−2t). The line may pass a map that the weights cannot follow. With two or more square
    layers that is one of determinant zero, at t* = log(1 + 1/|μ|) with μ the largest negative real eigenvalue of W(0)⁻¹ W*:
    the weights move infinitely fast there and the flow ends. Discrete steps cross it or not: det W gets the factor
    det(I − (lr/L) W⁻¹ (W − W*))^L, so that with an even L it keeps its sign for ever. Hidden layers wider than inputs and
    outputs need not pass there. In other shapes a breakdown is not foreseen, but noticed when the steps shrink to nothing.

    Args: times: from 0, ascending; in the flow's own time, lr · steps of small discrete steps. The rest as `natural_gradient`.
    Warns: NumericalWarning with the time if the flow ends before the last of `times`; the result ends there.
    Cost: some tens of natural gradients per unit of time, each step to a relative error of 1e-9 (Dormand and Prince's pair).
    References: [Bernacchia2018]; the breakdown is derived here.
    """
    asked = checked_times(times)
    layers = checked_layers(weights, inputs, targets)
    dtype = layers[0].dtype
    problem = regression(layers, inputs, targets, output_covariance)
    layers = [layer.double() for layer in layers]
    first = factored(chain(layers, problem), problem.eps)

    def speed(vector: Tensor) -> Tensor:
        net = factored(chain(_unflat(vector, layers), problem), problem.eps)
        return -torch.cat([layer.flatten() for layer in exact_shares(net)])

    end = breakdown_time(layers, problem) if first.onto else math.inf
    start = torch.cat([layer.flatten() for layer in layers])
    reached, stuck = integrate(speed, start, [t for t in asked.tolist() if t < end])
    end = end if stuck is None else stuck
    if len(reached) < len(asked):
        warnings.warn(
            f"the natural gradient flow ends at t = {end:.6g}, where it would have to pass a map of lower rank; "
            f"{len(asked) - len(reached)} of {len(asked)} times lie beyond and are left out. Start from other weights, or "
            "widen the hidden layers.",
            NumericalWarning,
            stacklevel=2,
        )
    path = [_unflat(vector, layers) for vector in reached]
    excess = torch.stack([chain(each, problem).excess() for each in path]) if path else asked[:0]
    predicted = torch.exp(-2 * asked[: len(path)]) * (first.chain.excess() if first.onto else math.nan)
    kept = tuple(tuple(layer.to(dtype) for layer in each) for each in path)
    return Flow(times[: len(path)], kept, excess.to(dtype), predicted.to(dtype), end)


def breakdown_time(layers: list[Tensor], problem: Regression) -> float:
    """t* = log(1 + 1/|μ|), μ the largest negative real eigenvalue of W(0)⁻¹ W*; inf if there is none.

    None is known for layers that are not square, data that do not determine W*, and a singular W(0). One layer has none.
    """
    size = len(problem.root)
    root = problem.root if problem.constant is None else torch.cat([problem.root, problem.constant])
    if len(layers) == 1 or any(len(layer) != size for layer in layers) or root.shape[0] > root.shape[1]:
        return math.inf
    start = torch.linalg.multi_dot([layer[:, :size] for layer in layers[::-1]])
    if torch.linalg.matrix_rank(start) < size:
        return math.inf
    best = torch.linalg.solve(problem.whiten, torch.linalg.lstsq(root.mT, problem.best.mT).solution.mT)
    values = torch.linalg.eigvals(torch.linalg.solve(start, best[:, :size]))
    negative = -values.real[(values.imag == 0) & (values.real < 0)]  # LAPACK's real eigenvalues have no imaginary part at all
    negative = negative[negative > zero_level(size, values.abs().max())]
    return math.log1p(1 / float(negative.max())) if len(negative) else math.inf


def product_steps(
    product: Float[Tensor, "D D"], best: Float[Tensor, "D D"], num_layers: int, lr: float, num_steps: int
) -> Float[Tensor, "K D D"]:
    """The products W = W_L ⋯ W_1 of square layers under discrete steps of length lr: W ← W (I − (lr/L) W⁻¹ (W − W*))^L.

    Exact at any step length, though no single layer is looked at: an oracle for `natural_gradient` with plain steps.

    Args: product, best: W(0), invertible, and the optimum W*. num_steps: K − 1; the first of the K products is W(0).
    References: derived here.
    """
    found = [product]
    eye = torch.eye(len(product), dtype=product.dtype, device=product.device)
    for _ in range(num_steps):
        W = found[-1]
        found.append(W @ torch.linalg.matrix_power(eye - lr / num_layers * torch.linalg.solve(W, W - best), num_layers))
    return torch.stack(found)


def _unflat(vector: Tensor, layers: list[Tensor]) -> tuple[Tensor, ...]:
    parts = vector.split([layer.numel() for layer in layers])
    return tuple(part.view_as(layer) for part, layer in zip(parts, layers, strict=True))
