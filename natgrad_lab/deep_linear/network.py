"""A deep linear network on data, in coordinates in which inputs and outputs are white.

f(x) = W_L ⋯ W_1 x is linear in x, so that N examples count only through a root R of their second moment Σ = R Rᵀ, and an
output covariance Γ = K Kᵀ only through K⁻¹. With A_i = K⁻¹ W_L ⋯ W_{i+1} (C, n_i) above layer i and B_i = W_{i−1} ⋯ W_1 R
(n_{i−1}, r) below it, a change {V_i} of the weights moves the function by Σ A_i V_i B_i, the gradient is A_iᵀ E B_iᵀ with E
the error, the loss above its minimum is ½‖E‖², and neither Σ nor Γ appears again.

Everything inside is float64. A layer is its matrix W, or the rows of [W | b] if it has one column more than it has inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from natgrad_lab.errors import UnsupportedLayerError
from natgrad_lab.linalg import check_finite, damped_cholesky
from natgrad_lab.shapes import Float, Tensor

Weights = Sequence[Tensor] | nn.Module


@dataclass(frozen=True)
class Regression:
    """What the loss knows of the data: root R (D, r), best K⁻¹ W* R (C, r), whiten K⁻¹ (C, C), constant (1, r) or None.

    `constant` is the row of R that belongs to the homogeneous input 1, there if any layer has a bias; `eps` the rounding of
    the precision in which weights and data were given.
    """

    root: Float[Tensor, "D r"]
    constant: Float[Tensor, "1 r"] | None
    best: Float[Tensor, "C r"]
    whiten: Float[Tensor, "C C"]
    eps: float


@dataclass(frozen=True)
class Chain:
    """A_1 … A_L, B_1 … B_L and the error E (C, r) of one set of weights.

    Ranges of A_1, A_2, … grow. Row spaces of B_1, B_2, … shrink, `is_nested`, unless a layer with bias follows one without.
    """

    above: tuple[Tensor, ...]
    below: tuple[Tensor, ...]
    error: Float[Tensor, "C r"]
    is_nested: bool

    def gradient(self) -> list[Tensor]:
        """∂ loss / ∂ [W_i | b_i] = A_iᵀ E B_iᵀ."""
        return self.pulled_back(self.error)

    def pulled_back(self, change: Float[Tensor, "C r"]) -> list[Tensor]:
        """Jᵀ applied to a change of the function: A_iᵀ change B_iᵀ."""
        return [A.mT @ change @ B.mT for A, B in zip(self.above, self.below, strict=True)]

    def pushed(self, layers: Sequence[Tensor]) -> Float[Tensor, "C r"]:
        """J applied to a change of the weights: Σ A_i V_i B_i. The Fisher is Jᵀ J."""
        return sum(A @ V @ B for A, V, B in zip(self.above, layers, self.below, strict=True))

    def gram(self) -> Float[Tensor, "R R"]:
        """J Jᵀ = Σ A_i A_iᵀ ⊗ B_iᵀ B_i, with R = C · r."""
        return sum(torch.kron(A @ A.mT, B.mT @ B) for A, B in zip(self.above, self.below, strict=True))

    def excess(self) -> Tensor:
        """½‖E‖², the loss above that of the best linear map."""
        return self.error.square().sum() / 2


def layers_of(model: nn.Module) -> list[Tensor]:
    """The layers of a network of `nn.Linear`s, each as the rows of [W | b]: the flat order, cut into matrices.

    Raises: UnsupportedLayerError for anything that is no chain of trainable Linear layers (`nn.Identity` passes).
    """
    return [
        layer.weight.detach().clone() if layer.bias is None else torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
        for layer in _linear_chain(model, "")
    ]


def _linear_chain(module: nn.Module, name: str) -> list[nn.Linear]:
    if type(module) is nn.Sequential:
        return [layer for key, child in module.named_children() for layer in _linear_chain(child, f"{name}.{key}".lstrip("."))]
    if type(module) is nn.Identity:
        return []
    if type(module) is not nn.Linear:
        raise UnsupportedLayerError(
            f"{name or 'the model'} ({type(module).__name__}) makes the network no product of matrices. The closed forms hold "
            "for nn.Sequential of nn.Linear, as models.deep_linear makes it; for others use fisher.natural_gradient."
        )
    if not all(parameter.requires_grad for parameter in module.parameters()):
        raise UnsupportedLayerError(
            f"layer {name!r} is frozen, and the closed form moves every layer. Use fisher.natural_gradient, or give the "
            "trained layers alone, with inputs as they arrive there."
        )
    return [module]


def checked_layers(weights: Weights, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """Matrices of one dtype and device, finite, that fit one after the other and to the data; or an error that names one."""
    layers = layers_of(weights) if isinstance(weights, nn.Module) else list(weights)
    if not layers:
        raise ValueError("a deep linear network needs at least one layer; got none.")
    names = [f"layer {i}" for i in range(1, len(layers) + 1)]
    given = dict(zip([*names, "inputs", "targets"], [*layers, inputs, targets], strict=True))
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor) or tensor.ndim != 2 or tensor.dtype not in (torch.float32, torch.float64):
            kind = f"{tensor.dtype} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a float32 or float64 matrix (inputs (N, D), targets (N, C)); got {kind}.")
        if (tensor.dtype, tensor.device) != (layers[0].dtype, layers[0].device):
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, layer 1 {layers[0].dtype} on {layers[0].device}. Convert one "
                "with .to(...)."
            )
        if not tensor.numel():
            raise ValueError(f"{name} is empty: its shape is {tuple(tensor.shape)}.")
        check_finite(tensor, name)
    if len(inputs) != len(targets):
        raise ValueError(f"inputs and targets must be of the same examples; got {len(inputs)} and {len(targets)}.")
    width = inputs.shape[1]
    for name, layer in zip(names, layers, strict=True):
        if layer.shape[1] not in (width, width + 1):
            raise ValueError(
                f"{name} has shape {tuple(layer.shape)} and receives {width} numbers: it needs {width} columns, or "
                f"{width + 1} as [W | b]. Layers are listed inputs first."
            )
        width = layer.shape[0]
    if width != targets.shape[1]:
        raise ValueError(f"the last layer has {width} outputs and the targets {targets.shape[1]}; they must agree.")
    return [layer.detach() for layer in layers]


def regression(layers: list[Tensor], inputs: Tensor, targets: Tensor, output_covariance: Tensor | None) -> Regression:
    """The least-squares problem in white coordinates, from a singular value decomposition of the inputs."""
    X, Y = inputs.detach().double(), targets.detach().double()
    widths = [X.shape[1], *(len(layer) for layer in layers[:-1])]
    has_bias = any(layer.shape[1] > width for layer, width in zip(layers, widths, strict=True))
    if has_bias:
        X = torch.cat([X, X.new_ones(len(X), 1)], 1)
    eps = torch.finfo(inputs.dtype).eps
    U, s, V = truncated_svd(X / len(X) ** 0.5, eps)
    root, best = V * s, Y.mT @ U / len(X) ** 0.5
    whiten = _whitening(output_covariance, Y)
    constant = root[-1:] if has_bias else None
    return Regression(root[:-1] if has_bias else root, constant, whiten @ best, whiten, eps)


def _whitening(covariance: Tensor | None, targets: Tensor) -> Tensor:
    size = targets.shape[1]
    eye = torch.eye(size, dtype=torch.float64, device=targets.device)
    if covariance is None:
        return eye
    if not isinstance(covariance, Tensor) or covariance.shape != (size, size):
        raise ValueError(
            f"output_covariance must be a ({size}, {size}) tensor, the covariance of the targets given the inputs; got "
            f"{tuple(covariance.shape) if isinstance(covariance, Tensor) else covariance!r}. For a variance σ² give σ² I."
        )
    return torch.linalg.solve_triangular(damped_cholesky(covariance.detach().double().to(eye.device)), eye, upper=False)


def chain(layers: Sequence[Tensor], problem: Regression) -> Chain:
    """A forward pass on the columns of R gives B_i, products from above give A_i."""
    signal, below, biases = problem.root, [], []
    for layer in layers:
        biases.append(layer.shape[1] > len(signal))
        below.append(torch.cat([signal, problem.constant]) if biases[-1] else signal)
        signal = layer @ below[-1]
    above = [problem.whiten]
    for layer, lower in zip(layers[:0:-1], layers[-2::-1], strict=True):
        above.insert(0, above[0] @ layer[:, : len(lower)])
    is_nested = biases == sorted(biases, reverse=True)
    return Chain(tuple(above), tuple(below), problem.whiten @ signal - problem.best, is_nested)


def truncated_svd(matrix: Float[Tensor, "m n"], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), s (r), V (n, r) with matrix = U diag(s) Vᵀ (float64), without singular values within rounding of zero.

    That is ten roundings of the decomposition, or of the entries, which were given to the relative accuracy `eps`.
    """
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 10 * max(eps, max(matrix.shape) * torch.finfo(s.dtype).eps) * s[0]).sum())
    return U[:, :rank], s[:rank], Vh[:rank].mT
